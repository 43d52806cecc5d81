# The service no longer runs here and its keys are gone. What it stored stays: nothing but a
# person deletes that.
{%- from 'storage/map.jinja' import service, config_dir with context %}

storage-absent-service:
  service.dead:
    - name: {{ service.name }}
    - enable: false

storage-absent-unit:
  unit_set.only:
    - name: {{ service.name }}.service
    - units: []
    - require:
        - service: storage-absent-service

storage-absent-files:
  file.absent:
    - names:
        - {{ config_dir }}
        - /opt/saltworks/rclone
    - require:
        - service: storage-absent-service
