# Synapse's processes of this machine find no Redis on loopback any more.
{%- from 'redis_proxy/map.jinja' import config, authority with context %}

redis-proxy-absent-service:
  service.dead:
    - name: haproxy
    - enable: false

# The drop-in stays while the package does: without the authority it does not let HAProxy start.
redis-proxy-absent-files:
  file.absent:
    - names:
        - {{ config }}
        - {{ authority }}
    - require:
        - service: redis-proxy-absent-service
