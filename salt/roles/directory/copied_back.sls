# The way by which the directory will come back is tried while nobody waits for it.
include:
  - transfer.pulled
