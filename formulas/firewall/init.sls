include:
  - firewall.configured
  - firewall.running
