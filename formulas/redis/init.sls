include:
  - redis.installed
  - redis.configured
  - redis.running
