include:
  - nginx.absent
  - relay.absent
  - synapse.absent
  - transfer.absent
