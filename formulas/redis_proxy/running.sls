include:
  - redis_proxy.configured

# Restarted, not reloaded: a reload leaves the old process behind with all that is connected, for as
# long as that is, and it asks nobody any more who the master is.
redis-proxy-running:
  service.running:
    - name: haproxy
    - enable: true
    - watch:
        - file: redis-proxy-config
        - file: redis-proxy-authority
        - file: redis-proxy-unit
    - require:
        - module: redis-proxy-unit-loaded
