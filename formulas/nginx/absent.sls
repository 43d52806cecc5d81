# Our site and door go. What the site replaced does not come back: see found.sls.
{%- from 'nginx/map.jinja' import nginx, site, conf_dir, leaving with context %}

nginx-absent-site:
  file.absent:
    - names:
        - {{ site.enabled_dir }}/{{ site.name }}
        - {{ site.available_dir }}/{{ site.name }}
        - {{ conf_dir }}

{%- if nginx.manage_server %}

# The values stay until the machine starts again.
nginx-absent-vanished:
  file.absent:
    - name: /etc/sysctl.d/60-saltworks-nginx.conf

nginx-absent-server:
  service.dead:
    - name: nginx
    - enable: false
    - require:
        - file: nginx-absent-site
    - require_in:
        - unit_set: nginx-absent-door

nginx-absent-record:
  file.absent:
    - name: /var/lib/saltworks/nginx.loaded
    - require:
        - service: nginx-absent-server
{%- else %}

nginx-absent-loaded:
  nginx_config.loaded:
    - watch:
        - file: nginx-absent-site
    - require_in:
        - unit_set: nginx-absent-door
{%- endif %}

# Only now: until nginx has let go of the site, requests may still wait in the sockets.
nginx-absent-door:
  unit_set.only:
    - name: saltworks-door
    - units: []

nginx-absent-door-files:
  file.absent:
    - names:
        - /etc/saltworks/door
        - /etc/saltworks/door.env
        - /etc/tmpfiles.d/saltworks-door.conf
        - /run/saltworks-door.open
        - {{ leaving }}
    - require:
        - unit_set: nginx-absent-door
