# salt-run state.orchestrate orch.m3.database
{%- from 'orch/part.jinja' import achieved with context %}

include:
  - orch.m3.database.apply
{%- if not pillar.saltworks.achieved['m3.database'] %}
  - orch.m3.database.verify

extend:
  m3-database-verified:
    milestone:
      - require:
          - salt: m3-database-converged

{{ achieved('database') }}
{%- endif %}
