# Certificates are read anew with each connection, so they restart nothing.
{%- from 'etcd/map.jinja' import etcd, config with context %}

include:
  - etcd.configured

etcd-running:
  service.running:
    - name: etcd
    - enable: true
    - watch:
        - file: etcd-config
        - file: etcd-unit
    - require:
        - file: etcd-crt
        - file: etcd-key
        - file: etcd-authority
        - module: etcd-unit-loaded
