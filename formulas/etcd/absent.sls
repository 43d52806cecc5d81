# The member no longer runs here, and its secrets are gone. Its data folder is for a person to
# delete: with it goes one voice of the cluster.
{%- from 'etcd/map.jinja' import config_dir with context %}

etcd-absent-service:
  service.dead:
    - name: etcd
    - enable: false

# The drop-in stays while the package does: without our configuration it does not let etcd start.
etcd-absent-files:
  file.absent:
    - name: {{ config_dir }}
    - require:
        - service: etcd-absent-service
