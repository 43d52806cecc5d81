# Two users meet through the public name; the database is where it should be.
m3-database-verified:
  milestone.verified:
    - name: m3.database
