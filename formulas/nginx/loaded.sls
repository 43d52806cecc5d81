# nginx runs with what is on disk; where the door leads is as it was.
include:
  - nginx.configured

nginx-running:
  service.running:
    - name: nginx
    - enable: true
    - require:
        - sls: nginx.configured

nginx-loaded:
  nginx_config.loaded:
    - require:
        - service: nginx-running
    - watch:
        - sls: nginx.configured
