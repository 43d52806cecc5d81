# Each machine has one role, and the plan says which formulas that means today.
base:
  'saltworks:role:*':
    - match: pillar
    - roles
