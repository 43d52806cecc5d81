{%- from 'redis_proxy/map.jinja' import config, authority with context %}

include:
  - redis_proxy.installed

redis-proxy-authority:
  file.managed:
    - name: {{ authority }}
    - contents_pillar: redis_proxy:authority
    - mode: '0644'
    - require:
        - pkg: redis-proxy-packages

# With the password of the account that only asks.
redis-proxy-config:
  file.managed:
    - name: {{ config }}
    - source: salt://redis_proxy/files/haproxy.cfg.jinja
    - template: jinja
    - mode: '0600'
    - show_changes: false
    - check_cmd: haproxy -c -f
    - require:
        - file: redis-proxy-authority
