# salt-run state.orchestrate orch.m3: the three parts, one after the other.
{%- from 'orch/m3/part.jinja' import last with context %}
{%- set achieved = pillar.saltworks.achieved %}
{%- set parts = ['database', 'media', 'auth'] %}

include:
{%- for part in parts %}
  - orch.m3.{{ part }}
{%- endfor %}

extend:
{%- for part in parts %}
  m3-{{ part }}-{{ 'converged' if achieved['m3.' ~ part] else 'begun' }}:
    {{ 'salt' if achieved['m3.' ~ part] else 'milestone' }}:
      - require:
          # What speaks against any of them is said before the first begins.
{%- for other in parts if other != part %}
          - milestone: m3-{{ other }}-prechecked
{%- endfor %}
{%- if not loop.first %}
          - id: {{ last(loop.previtem) }}
{%- endif %}
{%- endfor %}
