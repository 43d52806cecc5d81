# What the way back needed goes for good: the backup, and the databases put aside.
{%- from 'roles/legacy/upgrade/map.jinja' import legacy, sqlite, cluster, directory with context %}

upgrade-backup-gone:
{%- if sqlite %}
  sqlitebackup.released:
    - name: {{ directory }}
    - keep: false

upgrade-put-aside-gone:
  sqlitebackup.forgotten:
    - name: {{ legacy.database.path }}
{%- else %}
  pgbackup.released:
    - name: {{ directory }}
    - cluster: {{ cluster | json }}
    - keep: false

upgrade-put-aside-gone:
  pgbackup.forgotten:
    - name: {{ legacy.database.name }}
    - cluster: {{ cluster | json }}
{%- endif %}
