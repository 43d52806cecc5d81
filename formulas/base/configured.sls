{%- from 'base/map.jinja' import base with context %}

base-directory:
  file.directory:
    - name: /etc/saltworks
    - mode: '0755'

# A minion reads it when it starts the next time; a state run must not restart the one it runs in.
base-minion:
  file.managed:
    - name: /etc/salt/minion.d/saltworks.conf
    - mode: '0644'
    - makedirs: true
    - contents: |
        # Kept by Salt (formulas/base).
        request_channel_timeout: {{ base.minion.request_channel_timeout }}

{%- for name, ip in base.hosts | dictsort %}

base-host-{{ name }}:
  host.present:
    - name: {{ name }}
    - ip: {{ ip | json }}
    - clean: true
{%- endfor %}
