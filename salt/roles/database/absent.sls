include:
  - postgres.absent
  - firewall.absent
