{%- from 'relay/map.jinja' import relays, unit_dir, firewall with context %}

include:
  - relay.installed

relay-directory:
  file.directory:
    - name: /etc/saltworks
    - mode: '0755'

relay-rules:
  file.managed:
    - name: /etc/saltworks/relay.nft
    - source: salt://relay/files/relay.nft.jinja
    - template: jinja
    - mode: '0644'
    - check_cmd: nft --check --file
    - require:
        - pkg: relay-packages
        - file: relay-directory

relay-firewall-unit:
  file.managed:
    - name: {{ unit_dir }}/{{ firewall }}.service
    - source: salt://relay/files/firewall.service.jinja
    - template: jinja
    - mode: '0644'

{%- for name, relay in relays | dictsort %}
{%- for kind in ('socket', 'service') %}

relay-{{ name }}-{{ kind }}:
  file.managed:
    - name: {{ unit_dir }}/saltworks-relay-{{ name }}.{{ kind }}
    - source: salt://relay/files/relay.{{ kind }}.jinja
    - template: jinja
    - mode: '0644'
    - context:
        relay_name: {{ name | json }}
        relay: {{ relay | json }}
{%- endfor %}
{%- endfor %}
