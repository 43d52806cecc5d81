include:
  - transfer.installed
  - transfer.configured
  - transfer.running
