# A database's machine that was coming or going does not answer. Reconcile runs this, with
# pillar.worker, the machine. Who serves in its place, Patroni has decided long before.
{%- set machine = pillar.worker %}

lose-lost:
  database.lost:
    - name: {{ machine }}

lose-shut-out:
  database.shut_out:
    - name: {{ machine }}
    - require:
        - database: lose-lost
