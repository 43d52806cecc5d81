# The way back of M1, as long as the door was not opened to the new release: the database as
# it was at the mark, and the server as found.
{%- from 'roles/legacy/upgrade/map.jinja' import legacy, sqlite, cluster, directory, mark, service with context %}

upgrade-back-nobody-wrote:
  door.kept_from:
    - name: legacy

upgrade-back-stopped:
  service.dead:
    - name: {{ service.name }}
    - enable: false
    - require:
        - door: upgrade-back-nobody-wrote

upgrade-back-database:
{%- if sqlite %}
  sqlitebackup.restored:
    - name: {{ mark }}
    - directory: {{ directory }}
{%- else %}
  pgbackup.restored:
    - name: {{ mark }}
    - directory: {{ directory }}
    - cluster: {{ cluster | json }}
{%- endif %}
    - require:
        - service: upgrade-back-stopped

upgrade-back-found:
  service.running:
    - name: {{ legacy.unit }}
    - enable: true
    - require:
        - {{ 'sqlitebackup' if sqlite else 'pgbackup' }}: upgrade-back-database

upgrade-back-answers:
  homeserver.answering:
    - name: {{ legacy.found_url }}
    - require:
        - service: upgrade-back-found

upgrade-back-door:
  door.opened:
    - name: found
    - require:
        - homeserver: upgrade-back-answers

# M1 takes a new backup when it is run again; until then the server need not keep WAL for one.
include:
  - roles.legacy.upgrade.released

extend:
  upgrade-backup-released:
    {{ 'sqlitebackup' if sqlite else 'pgbackup' }}:
      - require:
          - door: upgrade-back-door
