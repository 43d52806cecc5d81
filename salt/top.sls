# Each machine has one role, and the plan says which formulas that means today.
base:
{%- for role in ('legacy', 'master', 'proxy', 'synapse', 'database', 'storage', 'directory', 'redis', 'worker') %}
  'saltworks:role:{{ role }}':
    - match: pillar
    - roles.{{ role }}
{%- endfor %}
