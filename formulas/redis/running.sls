{%- from 'redis/map.jinja' import redis, service, config_dir with context %}

include:
  - redis.configured

redis-running:
  service.running:
    - name: {{ service.name }}
    - enable: true
    - watch:
        - file: redis-config
        - file: redis-accounts
        - file: redis-crt
        - file: redis-key
        - file: redis-authority
        - file: redis-unit
    - require:
        - file: redis-first
        - file: redis-program
        - module: redis-unit-loaded

redis-serving:
  redis_bus.serving:
    - name: {{ redis.name }}
    - address: {{ redis.address }}
    - port: {{ redis.port }}
    - user: {{ redis.user }}
    - password_pillar: redis:password
    - authority: {{ config_dir }}/tls.authority
    - require:
        - service: redis-running
