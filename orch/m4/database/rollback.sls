# Back to one PostgreSQL under Debian's own unit, once every other machine of the cluster has left,
# until it is finalized.
{%- set saltworks = pillar.saltworks %}

m4-database-returnable:
  milestone.returnable:
    - name: m4.database

m4-database-alone:
  database.alone:
    - name: {{ saltworks.machines.database }}
    - require:
        - milestone: m4-database-returnable

m4-database-parted:
  salt.state:
    - tgt: {{ saltworks.machines.database }}
    - sls: patroni.absent
    - queue: true
    - require:
        - database: m4-database-alone

# The plan has one database again, whose unit is Debian's, and no etcd.
m4-database-dissolved:
  database.dissolved:
    - name: {{ saltworks.machines.database }}
    - require:
        - salt: m4-database-parted

m4-database-recorded-back:
  milestone.rolled_back:
    - name: m4.database
    - require:
        - database: m4-database-dissolved

m4-database-converged-back:
  salt.state:
    - tgt: {{ (saltworks.cluster.watchers + [saltworks.machines.database, saltworks.machines.storage]) | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: m4-database-recorded-back

# Last: until its role has said so, PostgreSQL archives by it.
m4-database-unarchived:
  salt.state:
    - tgt: {{ saltworks.machines.database }}
    - sls: pgbackrest.absent
    - queue: true
    - require:
        - salt: m4-database-converged-back
