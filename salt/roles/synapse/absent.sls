include:
  - synapse.absent
  - media.absent
  - transfer.absent
  - firewall.absent
