"""Decisions of Synapse Saltworks, in plain Python: no Salt import, no side effect.

Runners, the external pillar and orchestration states are thin loaders over this
package; it is found through the master's ``utils_dirs``.
"""
