# Two users meet through the public name.
m1-verified:
  milestone.verified:
    - name: m1
