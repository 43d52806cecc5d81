# Back to what was found: the hand-made links return, our site goes. The way back of M1.
{%- from 'nginx/map.jinja' import nginx, site, kept with context %}

nginx-found-site-gone:
  file.absent:
    - name: {{ site.enabled_dir }}/{{ site.name }}

{%- for path in nginx.replaces %}

nginx-found-{{ path }}:
  file.rename:
    - name: {{ path }}
    - source: {{ kept(path) }}
    - require:
        - file: nginx-found-site-gone
    - watch_in:
        - nginx_config: nginx-found-loaded
{%- endfor %}

nginx-found-loaded:
  nginx_config.loaded:
    - watch:
        - file: nginx-found-site-gone
