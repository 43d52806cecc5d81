{%- from 'nginx/map.jinja' import site, door with context %}

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

{%- if site.kind == 'synapse' %}

nginx-door-open:
  door.opened:
    - name: {{ door.target }}
    - require:
        - nginx_config: nginx-loaded
{%- endif %}
