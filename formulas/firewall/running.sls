{%- from 'firewall/map.jinja' import ports, rules, unit with context %}

include:
  - firewall.configured
{%- if ports %}

firewall-running:
  service.running:
    - name: {{ unit }}
    - enable: true
    - require:
        - file: firewall-rules
        - file: firewall-unit

firewall-loaded:
  nft_table.loaded:
    - name: inet saltworks_firewall
    - path: {{ rules }}
    - service: {{ unit }}
    - require:
        - service: firewall-running
    - watch:
        - file: firewall-rules
{%- endif %}
