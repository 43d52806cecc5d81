include:
  - pgbackrest.absent
  - patroni.absent
  - postgres.absent
  - firewall.absent
