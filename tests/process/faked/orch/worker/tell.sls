# orch/worker/tell.sls would change the machine that the tests run on.
tell-told:
  test.succeed_without_changes:
    - name: {{ pillar.worker }}
