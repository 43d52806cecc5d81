# The unit takes its table along when it is stopped.
{%- from 'firewall/map.jinja' import rules, unit with context %}

firewall-unit-gone:
  unit_set.only:
    - name: {{ unit }}.service
    - units: []

firewall-rules-gone:
  file.absent:
    - name: {{ rules }}
    - require:
        - unit_set: firewall-unit-gone
