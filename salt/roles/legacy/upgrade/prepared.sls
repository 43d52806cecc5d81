# While people chat on the server as found: the new release beside it, and our site in front
# of it, its door where it was (first of all: to the server as found).
include:
  - base
  - relay
  - nginx.loaded
  - synapse.prepared
