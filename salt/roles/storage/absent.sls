include:
  - storage.absent
  - firewall.absent
