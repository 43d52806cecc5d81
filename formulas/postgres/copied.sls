# Our cluster becomes a standby of another machine's, made of a copy taken live.
{%- from 'postgres/map.jinja' import postgres, cluster, upstream with context %}

{%- if postgres.upstream %}

include:
  - postgres.configured
{%- endif %}

postgres-copied:
  pgstandby.copied:
    - name: copy
    - upstream: {{ (upstream if postgres.upstream else {}) | json }}
    - cluster: {{ cluster | json }}
{%- if postgres.upstream %}
    - require:
        - sls: postgres.configured
        - sls: postgres.keys
{%- endif %}
