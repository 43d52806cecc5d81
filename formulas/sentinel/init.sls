include:
  - sentinel.installed
  - sentinel.configured
  - sentinel.running
