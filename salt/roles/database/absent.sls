include:
  - patroni.absent
  - postgres.absent
  - pgbackrest.absent
  - firewall.absent
