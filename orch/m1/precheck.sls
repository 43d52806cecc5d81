# Everything that speaks against M1, in one answer. Reads only, in test mode too.
m1-prechecked:
  milestone.prechecked:
    - name: m1
