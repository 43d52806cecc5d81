# Two users meet through the public name; etcd, Patroni and Synapse agree on one primary.
m4-database-verified:
  milestone.verified:
    - name: m4.database
