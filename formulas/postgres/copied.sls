# Our cluster becomes a standby of another machine's, made of a copy taken live.
{%- from 'postgres/map.jinja' import postgres, cluster, upstream with context %}

include:
  - postgres.configured

{%- if postgres.upstream %}

postgres-copied:
  pgstandby.copied:
    - name: copy
    - upstream: {{ upstream | json }}
    - cluster: {{ cluster | json }}
    - require:
        - sls: postgres.configured
        - sls: postgres.keys
{%- endif %}
