include:
  - redis_proxy.installed
  - redis_proxy.configured
  - redis_proxy.running
