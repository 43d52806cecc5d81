# The service no longer runs here and its secrets are gone; it kept nothing.
{%- from 'redis/map.jinja' import service, config_dir, settings, first, running, program, drop_in with context %}

redis-absent-service:
  service.dead:
    - name: {{ service.name }}
    - enable: false

redis-absent-files:
  file.absent:
    - names:
        - {{ config_dir }}/users.acl
        - {{ config_dir }}/tls.crt
        - {{ config_dir }}/tls.key
        - {{ config_dir }}/tls.authority
        - {{ settings }}
        - {{ first }}
        - {{ running }}
        - {{ running }}.new
        - {{ program }}
        - {{ drop_in }}
    - require:
        - service: redis-absent-service

redis-absent-unit:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: redis-absent-files
