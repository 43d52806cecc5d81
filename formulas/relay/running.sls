{%- from 'relay/map.jinja' import relays, firewall with context %}

include:
  - relay.configured

relay-others-gone:
  unit_set.only:
    - name: saltworks-relay-
    - units:
        - {{ firewall }}.service
{%- for name in relays | sort %}
        - saltworks-relay-{{ name }}.socket
        - saltworks-relay-{{ name }}.service
{%- endfor %}

relay-firewall-running:
  service.running:
    - name: {{ firewall }}
    - enable: true
    - reload: true
    - watch:
        - file: relay-rules
        - file: relay-firewall-unit

{%- for name in relays | sort %}

relay-{{ name }}-running:
  service.running:
    - name: saltworks-relay-{{ name }}.socket
    - enable: true
    - require:
        - service: relay-firewall-running
        - unit_set: relay-others-gone
    - watch:
        - file: relay-{{ name }}-socket
        - file: relay-{{ name }}-service
{%- endfor %}
