include:
  - postgres.copied
