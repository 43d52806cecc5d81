# A machine comes into service. Reconcile runs this, with pillar.worker, the machine.
{%- set worker = pillar.worker %}

join-begun:
  worker.begun:
    - name: {{ worker }}

join-synced:
  worker.synced:
    - name: {{ worker }}
    - require:
        - worker: join-begun

join-converged:
  worker.converged:
    - name: {{ worker }}
    - require:
        - worker: join-synced

join-healthy:
  worker.healthy:
    - name: {{ worker }}
    - require:
        - worker: join-converged

join-caught-up:
  worker.caught_up:
    - name: {{ worker }}
    - require:
        - worker: join-healthy

# Of a stream writer, or one who takes a duty, those concerned are told in this step.
join-registered:
  worker.registered:
    - name: {{ worker }}
    - require:
        - worker: join-caught-up

join-fronted:
  worker.fronted:
    - name: {{ worker }}
    - require:
        - worker: join-registered

join-served:
  worker.served:
    - name: {{ worker }}
    - require:
        - worker: join-fronted

join-joined:
  worker.joined:
    - name: {{ worker }}
    - require:
        - worker: join-served
