# Everything that speaks against M4.workers, in one answer. Reads only, in test mode too.
m4-workers-prechecked:
  milestone.prechecked:
    - name: m4.workers
