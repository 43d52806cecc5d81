# Everything that speaks against M4.database, in one answer. Reads only, in test mode too.
m4-database-prechecked:
  milestone.prechecked:
    - name: m4.database
