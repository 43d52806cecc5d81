include:
  - postgres.installed
  - postgres.configured
  - postgres.running
