{%- from 'base/map.jinja' import base with context %}

base-directory:
  file.directory:
    - name: /etc/saltworks
    - mode: '0755'

{%- for name, ip in base.hosts | dictsort %}

base-host-{{ name }}:
  host.present:
    - name: {{ name }}
    - ip: {{ ip | json }}
    - clean: true
{%- endfor %}
