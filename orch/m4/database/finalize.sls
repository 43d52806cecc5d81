# Nothing is retired: it is recorded that there is no way back any more.
# First: salt-run milestone.arm m4.database.finalize
m4-database-disarmed:
  milestone.disarmed:
    - name: m4.database.finalize

m4-database-verified-again:
  milestone.verified:
    - name: m4.database
    - require:
        - milestone: m4-database-disarmed

m4-database-finalized:
  milestone.finalized:
    - name: m4.database
    - require:
        - milestone: m4-database-verified-again
