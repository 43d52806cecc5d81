include:
  - relay.configured
  - relay.running
