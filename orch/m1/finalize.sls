# What cannot be undone; first: salt-run milestone.arm m1.finalize
m1-disarmed:
  milestone.disarmed:
    - name: m1.finalize

m1-finalized:
  salt.state:
    - tgt: {{ pillar.saltworks.machines.legacy }}
    - sls: roles.legacy.upgrade.finalized
    - queue: true
    - require:
        - milestone: m1-disarmed
