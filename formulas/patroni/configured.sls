# Nothing runs otherwise by this; see patroni.running.
{%- from 'patroni/map.jinja' import patroni, config, config_dir, pg_config_dir, drop_in, program with context %}

include:
  - patroni.installed
  - postgres.settings

{%- for kind in ('crt', 'key', 'authority') %}

patroni-{{ kind }}:
  file.managed:
    - name: {{ config_dir }}/tls.{{ kind }}
    - contents_pillar: patroni:certificate:{{ kind }}
    - user: root
    - group: postgres
    - mode: '0640'
    - show_changes: false
    - require:
        - pkg: patroni-packages
{%- endfor %}

# Here alone: Patroni is told of no lines, so it writes none.
patroni-hba:
  file.managed:
    - name: {{ pg_config_dir }}/pg_hba.conf
    - source: salt://patroni/files/pg_hba.conf.jinja
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - require:
        - sls: postgres.settings

# Release 3.0.2 lets a leader that stood still take back a key that another one has.
patroni-program:
  file.managed:
    - name: {{ program }}
    - source: salt://patroni/files/patroni_guarded.py
    - mode: '0755'
    - makedirs: true

patroni-unit:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://patroni/files/patroni.service.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true
    - require:
        - file: patroni-program

# Salt sees that a unit has changed, but not by a drop-in alone.
patroni-unit-loaded:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: patroni-unit

patroni-config:
  file.managed:
    - name: {{ config }}
    - source: salt://patroni/files/config.yml.jinja
    - template: jinja
    - user: root
    - group: postgres
    - mode: '0640'
    - show_changes: false
    - require:
        - file: patroni-crt
        - file: patroni-key
        - file: patroni-authority
        - sls: postgres.settings
