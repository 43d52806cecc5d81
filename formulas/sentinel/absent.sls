# Sentinel no longer runs here; its secrets and what it had learned are gone. The others count it until
# their own `peers` no longer name it.
{%- from 'sentinel/map.jinja' import config_dir, state_dir, program with context %}

sentinel-absent-service:
  service.dead:
    - name: redis-sentinel
    - enable: false

# The drop-in stays while the package does: without our configuration it does not let Sentinel start.
sentinel-absent-files:
  file.absent:
    - names:
        - {{ config_dir }}
        - {{ state_dir }}
        - {{ program }}
    - require:
        - service: sentinel-absent-service
