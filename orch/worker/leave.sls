# A machine goes out of service in peace. Reconcile runs this, with pillar.worker, the machine.
{%- set worker = pillar.worker %}

# Those concerned are told in this step.
leave-draining:
  worker.draining:
    - name: {{ worker }}

leave-front:
  salt.state:
    - tgt: {{ pillar.saltworks.front }}
    - highstate: true
    - queue: true
    - require:
        - worker: leave-draining

leave-emptied:
  worker.emptied:
    - name: {{ worker }}
    - require:
        - salt: leave-front

leave-stopped:
  salt.state:
    - tgt: {{ worker }}
    - sls: roles.worker.absent
    - queue: true
    - require:
        - worker: leave-emptied

leave-gone:
  worker.gone:
    - name: {{ worker }}
    - require:
        - salt: leave-stopped
