# salt-run state.orchestrate orch.m4.workers: Redis, and the first machines of workers.
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

# Those that have been invited and have started: reconcile brings them, one after the other.
m4-workers-arrived:
  worker.arrived:
    - name: m4.workers
    - require:
{%- if pillar.saltworks.achieved['m4.workers'] %}
        - salt: m4-workers-converged
{%- else %}
        - milestone: m4-workers-achieved
{%- endif %}
