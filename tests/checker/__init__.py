"""Whether what was acknowledged through one process of Synapse is read at once through another."""
