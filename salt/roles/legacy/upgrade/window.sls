# The window of M1, as one state run: it goes to its end, or stops with the door shut, also
# when the master goes away. Opening the door to `legacy` is the point of no return.
{%- from 'roles/legacy/upgrade/map.jinja' import legacy, sqlite, cluster, directory, mark, release, version, config, current, service with context %}
{%- set backup = 'sqlitebackup' if sqlite else 'pgbackup' %}

{%- if salt['door.status']()['target'] == 'legacy' %}

upgrade-window-past:
  test.nop
{%- else %}

# What takes long to load is loaded while nobody waits for it.
upgrade-warmed:
  synapse_db.warmed:
    - name: {{ config }}
    - release: {{ release }}
    - user: {{ legacy.user }}
    - online: {{ (legacy.background_updates == 'online') | json }}

upgrade-announced:
  door.announced:
    - name: door
    - seconds: {{ legacy.announce_seconds }}
    - require:
        - synapse_db: upgrade-warmed

upgrade-door-closed:
  door.closed:
    - name: door
    - require:
        - door: upgrade-announced

upgrade-drained:
  door.drained:
    - name: {{ legacy.unit }}
    - ports: [{{ legacy.drain_port }}]
    - require:
        - door: upgrade-door-closed

upgrade-found-stopped:
  service.dead:
    - name: {{ legacy.unit }}
    - enable: false
    - require:
        - door: upgrade-drained

upgrade-marked:
  {{ backup }}.{{ 'taken' if sqlite else 'marked' }}:
    - name: {{ mark }}
    - directory: {{ directory }}
{%- if sqlite %}
    - source: {{ legacy.database.path }}
{%- else %}
    - cluster: {{ cluster | json }}
    - quiet: {{ legacy.database.user }}
{%- endif %}
    - require:
        - service: upgrade-found-stopped

# Once marked nothing of the old release is pending; what is pending then is of a run that died.
upgrade-migrated:
  synapse_db.migrated:
    - name: {{ config }}
    - release: {{ release }}
    - user: {{ legacy.user }}
    - online: {{ (legacy.background_updates == 'online') | json }}
    - resume: true
    - timeout: 43200
    - require:
        - {{ backup }}: upgrade-marked

upgrade-receipts:
  synapse_upgrade.receipts_counted:
    - name: {{ config }}
    - service: {{ service.name }}
    - require:
        - synapse_db: upgrade-migrated

upgrade-to-device:
  synapse_upgrade.to_device_counted:
    - name: {{ config }}
    - service: {{ service.name }}
    - require:
        - synapse_upgrade: upgrade-receipts

upgrade-current:
  file.symlink:
    - name: {{ current }}
    - target: {{ release }}
    - atomic: true
    - require:
        - synapse_upgrade: upgrade-to-device

upgrade-started:
  service.running:
    - name: {{ service.name }}
    - enable: true
    - require:
        - file: upgrade-current

upgrade-answers:
  homeserver.answering:
    - name: {{ legacy.url }}
    - version: {{ version | json }}
    - require:
        - service: upgrade-started

upgrade-nothing-lost:
  synapse_upgrade.nothing_lost:
    - name: {{ config }}
    - directory: {{ directory }}
    - mark: {{ mark }}
    - require:
        - homeserver: upgrade-answers

upgrade-door-open:
  door.opened:
    - name: legacy
    - require:
        - synapse_upgrade: upgrade-nothing-lost
{%- endif %}
