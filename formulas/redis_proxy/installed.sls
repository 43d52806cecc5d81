# Debian starts HAProxy as it is installed. So the unit is told first to want the authority, which is
# not there yet.
{%- from 'redis_proxy/map.jinja' import redis_proxy, drop_in with context %}

redis-proxy-unit:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://redis_proxy/files/haproxy.service.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true

# Salt sees that a unit has changed, but not by a drop-in alone.
redis-proxy-unit-loaded:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: redis-proxy-unit

redis-proxy-packages:
  pkg.installed:
    - pkgs: {{ redis_proxy.packages | json }}
    - require:
        - file: redis-proxy-unit
        - module: redis-proxy-unit-loaded
