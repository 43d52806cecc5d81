# On the storage machine, while it serves: what it has is hashed. Synapse's machine then fetches
# what it has no file of (saltworks.parts.media.steps).
include:
  - storage.hashed
