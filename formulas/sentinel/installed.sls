# Debian starts Sentinel as it is installed. So the unit is told first to want our configuration, which
# is not there yet.
{%- from 'sentinel/map.jinja' import sentinel, drop_in with context %}

sentinel-unit:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://sentinel/files/redis-sentinel.service.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true

# Salt sees that a unit has changed, but not by a drop-in alone.
sentinel-unit-loaded:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: sentinel-unit

sentinel-packages:
  pkg.installed:
    - pkgs: {{ sentinel.packages | json }}
    - require:
        - file: sentinel-unit
        - module: sentinel-unit-loaded
