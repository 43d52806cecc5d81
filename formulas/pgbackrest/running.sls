# The server must archive by then: the formula of PostgreSQL, or Patroni, says how.
{%- from 'pgbackrest/map.jinja' import pgbackrest, unit with context %}

include:
  - pgbackrest.configured

pgbackrest-stanza:
  pgbackrest.stanza:
    - name: {{ pgbackrest.stanza }}
    - require:
        - file: pgbackrest-config
        - file: pgbackrest-authority
        - file: pgbackrest-settings
        - file: pgbackrest-saltworks_backup.py

pgbackrest-timer-running:
{%- if pgbackrest.takes %}
  service.running:
    - name: {{ unit }}.timer
    - enable: true
    - require:
        - pgbackrest: pgbackrest-stanza
    - watch:
        - file: pgbackrest-timer
        - file: pgbackrest-service
{%- else %}
  service.dead:
    - name: {{ unit }}.timer
    - enable: false
    - require:
        - file: pgbackrest-timer
{%- endif %}
