include:
  - postgres.following
