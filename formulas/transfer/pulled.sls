# The trees are copied; run again, only what changed since is sent.
{%- from 'transfer/map.jinja' import transfer, directory with context %}

include:
  - transfer.configured

{%- for name, pull in transfer.pulls | dictsort %}

transfer-pulled-{{ name }}:
  transfer.pulled:
    - name: {{ pull.destination }}
    - source: {{ pull.source }}
    - host: {{ transfer.from | json }}
    - key: {{ directory }}/{{ name }}.key
    - user: {{ pull.user }}
    - require:
        - sls: transfer.configured
{%- endfor %}
