# While people chat: the way back, restored once to prove it, and the migration rehearsed on
# the restored copy.
{%- from 'roles/legacy/upgrade/map.jinja' import legacy, sqlite, cluster, directory, live, rehearsal, config with context %}

{%- if sqlite %}

upgrade-backup:
  sqlitebackup.taken:
    - name: {{ live }}
    - source: {{ legacy.database.path }}
    - directory: {{ directory }}
    - live: true

upgrade-proof:
  sqlitebackup.proven:
    - name: {{ live }}
    - directory: {{ directory }}
    - rehearse: {{ rehearsal | json }}
    - require:
        - sqlitebackup: upgrade-backup
{%- else %}

upgrade-backup:
  pgbackup.based:
    - name: {{ directory }}
    - database: {{ legacy.database.name }}
    - cluster: {{ cluster | json }}

upgrade-proof:
  pgbackup.proven:
    - name: {{ directory }}
    - cluster: {{ cluster | json }}
    - rehearse: {{ rehearsal | json }}
    - require:
        - pgbackup: upgrade-backup
{%- endif %}

upgrade-decided:
  synapse_upgrade.decided:
    - name: {{ config }}
    - directory: {{ directory }}
    - mark: {{ live }}
    - choice: {{ legacy.background_updates | json }}
    - require:
        - {{ 'sqlitebackup' if sqlite else 'pgbackup' }}: upgrade-proof
