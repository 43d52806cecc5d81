# A found cluster may be copied by another machine; without roles: no longer.
{%- from 'postgres/map.jinja' import postgres, cluster with context %}

{%- if postgres.roles %}
{%- set lines = [] %}
{%- for row in postgres.admits %}
{%- do lines.append('hostssl ' ~ row.database ~ ' ' ~ row.user ~ ' ' ~ row.address ~ ' scram-sha-256') %}
{%- endfor %}

postgres-bounded:
  pgstandby.bounded:
    - name: max_slot_wal_keep_size
    - wanted: true
    - cluster: {{ cluster | json }}

postgres-admitted:
  pgstandby.admitted:
    - name: roles
    - roles_pillar: postgres:roles
    - lines: {{ lines | json }}
    - cluster: {{ cluster | json }}
{%- if postgres.logical %}

postgres-published:
  pgstandby.published:
    - name: {{ postgres.database }}
    - role: {{ postgres.replication.role }}
    - cluster: {{ cluster | json }}
    - require:
        - pgstandby: postgres-admitted
{%- endif %}
{%- endif %}

postgres-source-slots:
  pgstandby.slots:
    - name: slots
    - wanted: {{ postgres.slots | json }}
    - cluster: {{ cluster | json }}
{%- if not postgres.roles %}
{%- if postgres.logical %}

postgres-unpublished:
  pgstandby.unpublished:
    - name: {{ postgres.database }}
    - role: {{ postgres.replication.role }}
    - cluster: {{ cluster | json }}
    - require:
        - pgstandby: postgres-source-slots
{%- endif %}

postgres-withdrawn:
  pgstandby.withdrawn:
    - name: {{ postgres.replication.role }}
    - cluster: {{ cluster | json }}
    - require:
        - pgstandby: {{ 'postgres-unpublished' if postgres.logical else 'postgres-source-slots' }}

postgres-unbounded:
  pgstandby.bounded:
    - name: max_slot_wal_keep_size
    - wanted: false
    - cluster: {{ cluster | json }}
    - require:
        - pgstandby: postgres-source-slots
{%- endif %}
