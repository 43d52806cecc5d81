include:
  - etcd.absent
  - firewall.absent
