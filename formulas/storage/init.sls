include:
  - storage.installed
  - storage.configured
  - storage.running
