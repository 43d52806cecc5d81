# A found cluster may be copied by another machine; without roles: no longer.
{%- from 'postgres/map.jinja' import postgres, cluster with context %}

{%- if postgres.roles %}
{%- set lines = [] %}
{%- for row in postgres.admits %}
{%- do lines.append('hostssl ' ~ row.database ~ ' ' ~ row.user ~ ' ' ~ row.address ~ ' scram-sha-256') %}
{%- endfor %}

postgres-admitted:
  pgstandby.admitted:
    - name: roles
    - roles_pillar: postgres:roles
    - lines: {{ lines | json }}
    - cluster: {{ cluster | json }}
{%- else %}

postgres-withdrawn:
  pgstandby.withdrawn:
    - name: {{ postgres.replication.role }}
    - cluster: {{ cluster | json }}
{%- endif %}

postgres-source-slots:
  pgstandby.slots:
    - name: slots
    - wanted: {{ postgres.slots | json }}
    - cluster: {{ cluster | json }}
