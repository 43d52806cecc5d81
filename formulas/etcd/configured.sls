{%- from 'etcd/map.jinja' import config, config_dir with context %}

include:
  - etcd.installed

etcd-directory:
  file.directory:
    - name: {{ config_dir }}
    - user: root
    - group: etcd
    - mode: '0750'
    - makedirs: true
    - require:
        - pkg: etcd-packages

{%- for kind in ('crt', 'key', 'authority') %}

etcd-{{ kind }}:
  file.managed:
    - name: {{ config_dir }}/tls.{{ kind }}
    - contents_pillar: etcd:certificate:{{ kind }}
    - user: etcd
    - group: etcd
    - mode: '0400'
    - show_changes: false
    - require:
        - file: etcd-directory
{%- endfor %}

# The last: with it the unit may start.
etcd-config:
  file.managed:
    - name: {{ config }}
    - source: salt://etcd/files/etcd.yml.jinja
    - template: jinja
    - user: root
    - group: etcd
    - mode: '0640'
    - require:
        - file: etcd-crt
        - file: etcd-key
        - file: etcd-authority
