# Everything that speaks against M2, in one answer. Reads only, in test mode too.
m2-prechecked:
  milestone.prechecked:
    - name: m2
