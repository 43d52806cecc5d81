{%- from 'pgbackrest/map.jinja' import store, config_dir, config_file, authority_file, program_dir, settings_file, unit, unit_dir with context %}

include:
  - pgbackrest.installed

pgbackrest-directory:
  file.directory:
    - name: {{ config_dir }}
    - user: root
    - group: postgres
    - mode: '0750'
    - require:
        - sls: pgbackrest.installed

# Holds the store's keys and the passphrase.
pgbackrest-config:
  file.managed:
    - name: {{ config_file }}
    - source: salt://pgbackrest/files/pgbackrest.conf.jinja
    - template: jinja
    - user: root
    - group: postgres
    - mode: '0640'
    - show_changes: false
    - require:
        - file: pgbackrest-directory

pgbackrest-authority:
{%- if store.authority %}
  file.managed:
    - name: {{ authority_file }}
    - contents_pillar: pgbackrest:store:authority
    - user: root
    - group: postgres
    - mode: '0640'
    - require:
        - file: pgbackrest-directory
{%- else %}
  file.absent:
    - name: {{ authority_file }}
{%- endif %}

{#- What the program imports lies beside it, and is there before it. #}
{%- for name in ('saltworks_backup_facts.py', 'saltworks_backup_turn.py', 'saltworks_backup.py') %}

pgbackrest-{{ name }}:
  file.managed:
    - name: {{ program_dir }}/{{ name }}
    - source: salt://pgbackrest/files/{{ name }}
    - mode: '0644'
    - makedirs: true
    - dir_mode: '0755'
{%- endfor %}

pgbackrest-settings:
  file.managed:
    - name: {{ settings_file }}
    - source: salt://pgbackrest/files/pgbackrest.json.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true

{%- for kind in ('service', 'timer') %}

pgbackrest-{{ kind }}:
  file.managed:
    - name: {{ unit_dir }}/{{ unit }}.{{ kind }}
    - source: salt://pgbackrest/files/backup.{{ kind }}.jinja
    - template: jinja
    - mode: '0644'
{%- endfor %}
