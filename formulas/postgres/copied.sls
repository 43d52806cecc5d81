# Our cluster becomes what the switch needs: a standby of another machine's, made of a copy taken
# live; the home of a database that gets its rows from there; or that of an empty one.
{%- from 'postgres/map.jinja' import postgres, cluster, upstream with context %}
{%- set begun = postgres.upstream or postgres.provides %}

{%- if begun %}

include:
  - postgres.configured
{%- endif %}

{%- if postgres.logical %}

postgres-replicated:
  pgstandby.replicated:
    - name: {{ postgres.database }}
    - owner: {{ postgres.provides.owner | default('') }}
    - role: {{ postgres.replication.role }}
    - upstream: {{ (upstream if postgres.upstream else {}) | json }}
{%- elif postgres.provides %}

postgres-provided:
  pgstandby.provided:
    - name: {{ postgres.database }}
    - owner: {{ postgres.provides.owner }}
    - password_pillar: postgres:provides:password
{%- else %}

postgres-copied:
  pgstandby.copied:
    - name: copy
    - upstream: {{ (upstream if postgres.upstream else {}) | json }}
{%- endif %}
    - cluster: {{ cluster | json }}
{%- if begun %}
    - require:
        - sls: postgres.configured
        - sls: postgres.keys
{%- endif %}
