"""The parts of M3, M4.workers and workers on the real machines, in one lab.

Each file can run alone as well.
"""
