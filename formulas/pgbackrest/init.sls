include:
  - pgbackrest.installed
  - pgbackrest.configured
  - pgbackrest.running
