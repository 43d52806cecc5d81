{%- from 'redis/map.jinja' import redis with context %}

redis-packages:
  pkg.installed:
    - pkgs: {{ redis.packages | json }}
