# salt-run state.orchestrate orch.m4.workers
{%- from 'orch/part.jinja' import achieved with context %}

include:
  - orch.m4.workers.apply
{%- if not pillar.saltworks.achieved['m4.workers'] %}
  - orch.m4.workers.verify

extend:
  m4-workers-verified:
    milestone:
      - require:
          - salt: m4-workers-converged

{{ achieved('redis') }}
{%- endif %}
