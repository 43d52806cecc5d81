# salt-run state.orchestrate orch.m3.auth
{%- from 'orch/part.jinja' import achieved with context %}

include:
  - orch.m3.auth.apply
{%- if not pillar.saltworks.achieved['m3.auth'] %}
  - orch.m3.auth.verify

extend:
  m3-auth-verified:
    milestone:
      - require:
          - salt: m3-auth-converged

{{ achieved('auth') }}
{%- endif %}
