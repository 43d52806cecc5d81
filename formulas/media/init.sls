include:
  - media.configured
  - media.running
