include:
  - directory.installed
  - directory.configured
  - directory.running
