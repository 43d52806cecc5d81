# The database as it was at a time: pillar.target, ISO 8601 with zone, or `latest` when the server is
# lost; on the primary's machine, or pillar.machine. People wait at the door meanwhile.
{%- set target = pillar.get('target', '') %}
{%- set machine = pillar.get('machine', '') %}

database-restore-covered:
  backup.covered:
    - name: '{{ target }}'
    - machine: '{{ machine }}'

database-restore-restored:
  backup.restored:
    - name: '{{ target }}'
    - machine: '{{ machine }}'
    - require:
        - backup: database-restore-covered
