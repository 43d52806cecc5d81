# etcd, then Patroni over the PostgreSQL that runs. Nobody restarts: not PostgreSQL, not Synapse.
{%- set saltworks = pillar.saltworks %}
{%- set cluster = saltworks.cluster %}
{%- set first = saltworks.machines.database %}
{%- set done = saltworks.achieved['m4.database'] %}

include:
  - orch.m4.database.precheck
{%- if not done %}

m4-database-begun:
  milestone.begun:
    - name: m4.database
    - require:
        - milestone: m4-database-prechecked
{%- endif %}
{%- for name in cluster.watchers + cluster.databases %}

m4-database-keyed-{{ name }}:
  milestone.keyed:
    - name: {{ name }}
    - secrets: {{ cluster.secrets | json }}
    - require:
        - milestone: m4-database-{{ 'prechecked' if done else 'begun' }}
    - require_in:
        - milestone: m4-database-watched
{%- endfor %}

m4-database-watched:
  milestone.placed:
    - name: m4.database
    - dcs: true

m4-database-etcd:
  salt.state:
    - tgt: {{ cluster.watchers | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - milestone: m4-database-watched

m4-database-quorum:
  database.watched:
    - name: etcd
    - require:
        - salt: m4-database-etcd

# The machine that M3 has made becomes the first member.
m4-database-founded:
  database.founded:
    - name: {{ first }}
    - require:
        - database: m4-database-quorum

# Where backups go lets the database's machines in.
m4-database-store:
  salt.state:
    - tgt: {{ saltworks.machines.storage }}
    - highstate: true
    - queue: true
    - require:
        - database: m4-database-founded

m4-database-converged:
  salt.state:
    - tgt: {{ cluster.databases | json }}
    - tgt_type: list
    - highstate: true
    - queue: true
    - require:
        - salt: m4-database-store

m4-database-led:
  database.led:
    - name: {{ first }}
    - require:
        - salt: m4-database-converged
