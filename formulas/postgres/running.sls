# Reloaded, never restarted: what needs a restart waits for the next (pg_settings.pending_restart).
{%- from 'postgres/map.jinja' import postgres, cluster, unit with context %}

include:
  - postgres.configured

postgres-running:
  service.running:
    - name: {{ unit }}
    - reload: true
    - watch:
        - file: postgres-config
        - file: postgres-hba
        - file: postgres-server-crt
        - file: postgres-server-key

# Debian's umbrella: starts what start.conf says at boot.
postgres-enabled:
  service.enabled:
    - name: postgresql

postgres-slots:
  pgstandby.slots:
    - name: slots
    - wanted: {{ postgres.slots | json }}
    - cluster: {{ cluster | json }}
    - require:
        - service: postgres-running

{%- if postgres.logical and not postgres.slots %}
{#- Nobody follows any more. #}

postgres-unpublished:
  pgstandby.unpublished:
    - name: {{ postgres.database }}
    - role: {{ postgres.replication.role }}
    - cluster: {{ cluster | json }}
    - require:
        - pgstandby: postgres-slots
{%- endif %}

postgres-measured:
  pgstandby.measured:
    - name: {{ postgres.database }}
    - cluster: {{ cluster | json }}
    - require:
        - service: postgres-running
