include:
  - synapse.absent
  - transfer.absent
