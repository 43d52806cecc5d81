# A machine does not answer: what it did is done by others. Reconcile runs this, with
# pillar.worker, the machine.
{%- set worker = pillar.worker %}

# Those concerned are told in this step.
lose-lost:
  worker.lost:
    - name: {{ worker }}

lose-fronted:
  worker.fronted:
    - name: {{ worker }}
    - require:
        - worker: lose-lost
