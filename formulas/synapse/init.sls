include:
  - synapse.installed
  - synapse.configured
  - synapse.running
