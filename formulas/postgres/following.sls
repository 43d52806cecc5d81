# A found cluster, fenced, follows the one that took over from it.
{%- from 'postgres/map.jinja' import postgres, cluster, upstream with context %}

{%- if postgres.upstream %}

include:
  - postgres.keys
{%- endif %}

postgres-following:
  pgstandby.following:
    - name: follower
    - upstream: {{ (upstream if postgres.upstream else {}) | json }}
    - database: {{ postgres.database }}
    - logical: {{ postgres.logical | json }}
    - cluster: {{ cluster | json }}
{%- if postgres.upstream %}
    - require:
        - sls: postgres.keys
{%- endif %}
