# Synapse and the front where they were, as long as nobody has written at the new place.
m2-returnable:
  milestone.returnable:
    - name: m2

m2-handed-back:
  milestone.handed_back:
    - name: m2
    - require:
        - milestone: m2-returnable

m2-front-back:
  milestone.placed:
    - name: m2
    - front: {{ pillar.saltworks.machines.legacy }}
    - require:
        - milestone: m2-handed-back

m2-legacy-back:
  salt.state:
    - tgt: {{ pillar.saltworks.machines.legacy }}
    - highstate: true
    - queue: true
    - require:
        - milestone: m2-front-back

m2-recorded-back:
  milestone.rolled_back:
    - name: m2
    - require:
        - salt: m2-legacy-back
