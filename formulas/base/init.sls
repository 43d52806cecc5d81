include:
  - base.configured
  - base.running
