# Debian's unit does not start without a configuration.
{%- from 'patroni/map.jinja' import patroni with context %}

include:
  - postgres.installed

patroni-packages:
  pkg.installed:
    - pkgs: {{ patroni.packages | json }}
    - require:
        - sls: postgres.installed
