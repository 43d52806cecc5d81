# A database's machine goes out of service in peace. Reconcile runs this, with pillar.worker, the
# machine.
{%- set machine = pillar.worker %}

# If it is the primary, another one takes over first.
leave-handed-over:
  database.handed_over:
    - name: {{ machine }}

leave-draining:
  database.draining:
    - name: {{ machine }}
    - require:
        - database: leave-handed-over

leave-retired:
  database.retired:
    - name: {{ machine }}
    - require:
        - database: leave-draining

leave-gone:
  worker.gone:
    - name: {{ machine }}
    - require:
        - database: leave-retired

leave-shut-out:
  database.shut_out:
    - name: {{ machine }}
    - require:
        - worker: leave-gone
