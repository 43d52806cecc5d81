# Others were being told of a machine, and that did not come to its end; or a machine could not be
# told then, and answers now. Reconcile runs this before all else, with pillar.worker.
{%- set worker = pillar.worker %}

tell-told:
  worker.told:
    - name: {{ worker }}

tell-fronted:
  worker.fronted:
    - name: {{ worker }}
    - require:
        - worker: tell-told
