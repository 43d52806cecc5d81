# A found cluster, fenced, follows the one that took over from it.
{%- from 'postgres/map.jinja' import postgres, cluster, upstream with context %}

include:
  - postgres.keys

{%- if postgres.upstream %}

postgres-following:
  pgstandby.following:
    - name: follower
    - upstream: {{ upstream | json }}
    - database: {{ postgres.database }}
    - cluster: {{ cluster | json }}
    - require:
        - sls: postgres.keys
{%- endif %}
