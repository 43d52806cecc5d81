# Two users meet through the public name; nothing but Synapse runs on its machine.
m2-verified:
  milestone.verified:
    - name: m2
