include:
  - etcd.installed
  - etcd.configured
  - etcd.running
