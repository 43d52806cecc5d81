# The database as it was at a time: pillar.target, ISO 8601 with zone. Who uses it is kept out by
# whoever includes this: the restore refuses as long as anybody is connected.
{%- set target = pillar.get('target', '') %}

database-restore-covered:
  backup.covered:
    - name: '{{ target }}'

database-restore-restored:
  backup.restored:
    - name: '{{ target }}'
    - require:
        - backup: database-restore-covered
