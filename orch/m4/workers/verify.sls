# Two users meet through the public name; Redis answers, and Synapse's main process its workers.
m4-workers-verified:
  milestone.verified:
    - name: m4.workers
