{%- from 'redis/map.jinja' import redis, config_dir, settings, first, program, drop_in with context %}

include:
  - redis.installed

{%- for name, mode in (('crt', '0640'), ('key', '0640'), ('authority', '0644')) %}

redis-{{ name }}:
  file.managed:
    - name: {{ config_dir }}/tls.{{ name }}
    - contents_pillar: redis:certificate:{{ name }}
    - user: root
    - group: redis
    - mode: '{{ mode }}'
    - show_changes: false
    - require:
        - pkg: redis-packages
{%- endfor %}

# Holds hashes of the passwords, and no more is needed.
redis-accounts:
  file.managed:
    - name: {{ config_dir }}/users.acl
    - source: salt://redis/files/users.acl.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - show_changes: false
    - require:
        - pkg: redis-packages

redis-config:
  file.managed:
    - name: {{ settings }}
    - source: salt://redis/files/redis.conf.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - show_changes: false
    - require:
        - pkg: redis-packages

# Read once, by the first start. It may change later, and nothing comes of it.
redis-first:
  file.managed:
    - name: {{ first }}
    - source: salt://redis/files/first.conf.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - require:
        - pkg: redis-packages

redis-program:
  file.managed:
    - name: {{ program }}
    - source: salt://redis/files/redis_compose.py
    - mode: '0755'
    - makedirs: true

redis-unit:
  file.managed:
    - name: {{ drop_in }}
    - source: salt://redis/files/redis.service.jinja
    - template: jinja
    - mode: '0644'
    - makedirs: true

# Salt sees that a unit has changed, but not by a drop-in alone: the service would start without it.
redis-unit-loaded:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
        - file: redis-unit
