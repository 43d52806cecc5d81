# orch/worker/lose.sls without what would change the machine that the tests run on.
lose-lost:
  worker.lost:
    - name: {{ pillar.worker }}
