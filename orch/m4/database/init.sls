# salt-run state.orchestrate orch.m4.database: the database as a cluster, and its first standbys.
{%- set done = pillar.saltworks.achieved['m4.database'] %}

include:
  - orch.m4.database.apply
{%- if not done %}
  - orch.m4.database.verify

extend:
  m4-database-verified:
    milestone:
      - require:
          - database: m4-database-led

m4-database-achieved:
  milestone.achieved:
    - name: m4.database
    - require:
        - milestone: m4-database-verified
    - require_in:
        - worker: m4-database-arrived
{%- endif %}

# Those that the map names and whose keys are accepted: reconcile brings them, one after the other.
m4-database-arrived:
  worker.arrived:
    - name: m4.database
    - require:
        - database: m4-database-led
