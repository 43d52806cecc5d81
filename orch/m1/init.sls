# salt-run state.orchestrate orch.m1
include:
  - orch.m1.apply
{%- if not pillar.saltworks.achieved.m1 %}
  - orch.m1.verify

extend:
  m1-verified:
    milestone:
      - require:
          - salt: m1-backup-released

m1-achieved:
  milestone.achieved:
    - name: m1
    - require:
        - milestone: m1-verified
{%- endif %}
