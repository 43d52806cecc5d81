# Everything that speaks against M3.database, in one answer. Reads only, in test mode too.
m3-database-prechecked:
  milestone.prechecked:
    - name: m3.database
