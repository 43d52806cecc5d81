{%- from 'nginx/map.jinja' import site, door with context %}

include:
  - nginx.loaded

{%- if site.kind == 'synapse' %}

nginx-door-open:
  door.opened:
    - name: {{ door.target }}
    - require:
        - nginx_config: nginx-loaded
{%- endif %}
