{%- from 'nginx/map.jinja' import nginx, site, routing, conf_dir, kept with context %}

include:
  - nginx.installed
  - nginx.door
{%- if routing and nginx.manage_server %}
  - nginx.vanished
{%- endif %}

nginx-tls-directory:
  file.directory:
    - name: {{ conf_dir }}/tls
    - mode: '0700'
    - require:
        - file: nginx-directory

nginx-certificate:
  file.managed:
    - name: {{ conf_dir }}/tls/{{ site.name }}.crt
    - contents_pillar: nginx:certificate:crt
    - mode: '0644'
    - require:
        - file: nginx-tls-directory

nginx-key:
  file.managed:
    - name: {{ conf_dir }}/tls/{{ site.name }}.key
    - contents_pillar: nginx:certificate:key
    - mode: '0600'
    - show_changes: false
    - require:
        - file: nginx-tls-directory

nginx-well-known-directory:
  file.directory:
    - name: {{ conf_dir }}/well-known
    - mode: '0755'
    - require:
        - file: nginx-directory

{%- for name, document in site.well_known | dictsort %}

nginx-well-known-{{ name }}:
  file.managed:
    - name: {{ conf_dir }}/well-known/{{ name }}.json
    - contents: {{ (document | json(sort_keys=True)) | json }}
    - mode: '0644'
    - require:
        - file: nginx-well-known-directory
    - require_in:
        - file: nginx-site
{%- endfor %}

{%- if routing %}

nginx-routing:
  file.managed:
    - name: {{ conf_dir }}/routing.conf
    - source: salt://nginx/files/routing.conf.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - file: nginx-directory
    - require_in:
        - file: nginx-site
{%- endif %}

nginx-site:
  file.managed:
    - name: {{ site.available_dir }}/{{ site.name }}
    - source: salt://nginx/files/site-{{ site.kind }}.conf.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - file: nginx-certificate
        - file: nginx-key
        - sls: nginx.door

{%- if nginx.replaces %}

nginx-replaced-directory:
  file.directory:
    - name: {{ conf_dir }}/replaced
    - mode: '0755'
    - require:
        - file: nginx-directory
{%- endif %}
{%- for path in nginx.replaces %}

nginx-replaces-{{ path }}:
  file.rename:
    - name: {{ kept(path) }}
    - source: {{ path }}
    - require:
        - file: nginx-site
        - file: nginx-replaced-directory
    - require_in:
        - file: nginx-site-enabled
{%- endfor %}

nginx-site-enabled:
  file.symlink:
    - name: {{ site.enabled_dir }}/{{ site.name }}
    - target: {{ site.available_dir }}/{{ site.name }}
    - require:
        - file: nginx-site

{%- if nginx.manage_server %}

nginx-conf:
  file.managed:
    - name: /etc/nginx/nginx.conf
    - source: salt://nginx/files/nginx.conf.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - pkg: nginx-packages

nginx-default-site:
  file.managed:
    - name: {{ site.available_dir }}/default
    - source: salt://nginx/files/default.conf.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - pkg: nginx-packages

nginx-default-site-enabled:
  file.symlink:
    - name: {{ site.enabled_dir }}/default
    - target: {{ site.available_dir }}/default
    - require:
        - file: nginx-default-site
{%- endif %}
