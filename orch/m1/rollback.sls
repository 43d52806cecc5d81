# Back to the server as found, as long as nobody has written to the new release.
m1-returnable:
  milestone.returnable:
    - name: m1

m1-back:
  salt.state:
    - tgt: {{ pillar.saltworks.machines.legacy }}
    - sls: roles.legacy.upgrade.back
    - queue: true
    - require:
        - milestone: m1-returnable

m1-recorded-back:
  milestone.rolled_back:
    - name: m1
    - require:
        - salt: m1-back
