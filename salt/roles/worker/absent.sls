include:
  - synapse.absent
  - media.absent
  - firewall.absent
