include:
  - redis.absent
  - firewall.absent
