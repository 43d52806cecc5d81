include:
  - synapse.absent
  - transfer.absent
  - firewall.absent
