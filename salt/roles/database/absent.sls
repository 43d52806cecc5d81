include:
  - patroni.absent
  - postgres.absent
  - firewall.absent
