# Sentinel no longer runs here; its secrets and what it had learned are gone. The others count it until
# their own `peers` no longer name it.
{%- from 'sentinel/map.jinja' import config_dir, state_dir, program with context %}

# The first: it would say of all that goes here that it is away.
sentinel-absent-alarm:
  beacon.absent:
    - name: redis_set
    - save: true

sentinel-absent-service:
  service.dead:
    - name: redis-sentinel
    - enable: false
    - require:
        - beacon: sentinel-absent-alarm

# The drop-in stays while the package does: without our configuration it does not let Sentinel start.
sentinel-absent-files:
  file.absent:
    - names:
        - {{ config_dir }}
        - {{ state_dir }}
        - {{ program }}
    - require:
        - service: sentinel-absent-service
