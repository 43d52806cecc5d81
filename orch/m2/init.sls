# salt-run state.orchestrate orch.m2
include:
  - orch.m2.apply
{%- if not pillar.saltworks.achieved.m2 %}
  - orch.m2.verify

extend:
  m2-verified:
    milestone:
      - require:
          - salt: m2-converged

m2-achieved:
  milestone.achieved:
    - name: m2
    - require:
        - milestone: m2-verified
{%- endif %}
