# What every server of ours has; who may come, and who starts it, others say.
{%- from 'postgres/map.jinja' import config_dir, keys_dir with context %}

include:
  - postgres.installed
  - postgres.keys

{%- for kind in ('crt', 'key') %}

postgres-server-{{ kind }}:
  file.managed:
    - name: {{ keys_dir }}/server.{{ kind }}
    - contents_pillar: postgres:certificate:{{ kind }}
    - user: root
    - group: postgres
    - mode: '0640'
    - show_changes: false
    - require:
        - sls: postgres.installed
        - file: postgres-keys-directory
{%- endfor %}

postgres-config:
  file.managed:
    - name: {{ config_dir }}/conf.d/saltworks.conf
    - source: salt://postgres/files/saltworks.conf.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - file: postgres-server-crt
        - file: postgres-server-key
        - file: postgres-authority
