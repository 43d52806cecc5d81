# The server keeps no WAL for the backup any more; the backup itself stays until finalize.
{%- from 'roles/legacy/upgrade/map.jinja' import sqlite, cluster, directory with context %}

upgrade-backup-released:
{%- if sqlite %}
  sqlitebackup.released:
    - name: {{ directory }}
{%- else %}
  pgbackup.released:
    - name: {{ directory }}
    - cluster: {{ cluster | json }}
{%- endif %}
