include:
  - patroni.installed
  - patroni.configured
  - patroni.running
