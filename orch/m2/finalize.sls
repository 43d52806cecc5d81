# The chat site leaves the old machine; first: salt-run milestone.arm m2.finalize
{%- set machines = pillar.saltworks.machines %}

m2-name-moved:
  milestone.name_moved:
    - name: m2

m2-disarmed:
  milestone.disarmed:
    - name: m2.finalize
    - require:
        - milestone: m2-name-moved

m2-retired:
  milestone.placed:
    - name: m2
    - retired: true
    - require:
        - milestone: m2-disarmed

m2-finalized:
  salt.state:
    - tgt: {{ [machines.legacy, machines.synapse] | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: m2-retired
