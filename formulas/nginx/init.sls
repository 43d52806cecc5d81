include:
  - nginx.installed
  - nginx.configured
  - nginx.running
