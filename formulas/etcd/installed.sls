# Debian starts etcd as it is installed, and it would make a cluster of its own. So the unit is told
# first to want our configuration, which is not there yet.
{%- from 'etcd/map.jinja' import etcd, drop_in with context %}

etcd-unit:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://etcd/files/etcd.service.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true

# Salt sees that a unit has changed, but not by a drop-in alone.
etcd-unit-loaded:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: etcd-unit

etcd-packages:
  pkg.installed:
    - pkgs: {{ etcd.packages | json }}
    - require:
        - file: etcd-unit
        - module: etcd-unit-loaded
