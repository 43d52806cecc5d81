# Synapse no longer runs here and its secrets are gone. Data, media and releases stay:
# nothing but a person deletes those.
{%- from 'synapse/map.jinja' import synapse, service, worker_unit, unit_file, current with context %}

synapse-absent-service:
  service.dead:
    - name: {{ service.name }}
    - enable: false

synapse-absent-unit:
  unit_set.only:
    - name: {{ service.name }}.service
    - units: []
    - require:
        - service: synapse-absent-service

synapse-absent-workers:
  unit_set.only:
    - name: {{ worker_unit }}@
    - units: []
    - require:
        - service: synapse-absent-service

synapse-absent-files:
  file.absent:
    - names:
        - {{ synapse.config_dir }}
        - {{ current }}
    - require:
        - service: synapse-absent-service
        - unit_set: synapse-absent-workers
