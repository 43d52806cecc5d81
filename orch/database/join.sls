# A standby comes into service. Reconcile runs this, with pillar.worker, the machine.
{%- set machine = pillar.worker %}

join-begun:
  worker.begun:
    - name: {{ machine }}

join-keyed:
  milestone.keyed:
    - name: {{ machine }}
    - require:
        - worker: join-begun

join-synced:
  worker.synced:
    - name: {{ machine }}
    - require:
        - milestone: join-keyed

# The others let it copy them.
join-admitted:
  database.admitted:
    - name: {{ machine }}
    - require:
        - worker: join-synced

join-converged:
  worker.converged:
    - name: {{ machine }}
    - require:
        - database: join-admitted

join-streaming:
  database.streaming:
    - name: {{ machine }}
    - require:
        - worker: join-converged

join-registered:
  database.registered:
    - name: {{ machine }}
    - require:
        - database: join-streaming

join-joined:
  worker.joined:
    - name: {{ machine }}
    - require:
        - database: join-registered
