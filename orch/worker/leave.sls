# A machine goes out of service in peace. Reconcile runs this, with pillar.worker, the machine.
{%- set worker = pillar.worker %}

# Those concerned are told in this step.
leave-draining:
  worker.draining:
    - name: {{ worker }}

leave-fronted:
  worker.fronted:
    - name: {{ worker }}
    - require:
        - worker: leave-draining

leave-emptied:
  worker.emptied:
    - name: {{ worker }}
    - require:
        - worker: leave-fronted

leave-retired:
  worker.retired:
    - name: {{ worker }}
    - require:
        - worker: leave-emptied

leave-gone:
  worker.gone:
    - name: {{ worker }}
    - require:
        - worker: leave-retired
