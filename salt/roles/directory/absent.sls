include:
  - directory.absent
  - transfer.absent
  - firewall.absent
