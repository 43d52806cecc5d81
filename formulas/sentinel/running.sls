{%- from 'sentinel/map.jinja' import sentinel, config_dir with context %}

include:
  - sentinel.configured

# A sentinel that starts anew is back in a second, and the others go on without it.
sentinel-running:
  service.running:
    - name: redis-sentinel
    - enable: true
    - watch:
        - file: sentinel-config
        - file: sentinel-members
        - file: sentinel-accounts
        - file: sentinel-crt
        - file: sentinel-key
        - file: sentinel-authority
        - file: sentinel-unit
    - require:
        - module: sentinel-unit-loaded

sentinel-serving:
  redis_bus.serving:
    - name: {{ sentinel.name }}
    - address: {{ sentinel.address }}
    - port: {{ sentinel.port }}
    - user: {{ sentinel.check.user }}
    - password_pillar: sentinel:check:password
    - authority: {{ config_dir }}/tls.authority
    - require:
        - service: sentinel-running
