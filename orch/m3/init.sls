# salt-run state.orchestrate orch.m3: its parts, one after the other.
{%- from 'orch/part.jinja' import last with context %}
{%- set achieved = pillar.saltworks.achieved %}
{%- set parts = pillar.saltworks.m3 %}

include:
{%- for part in parts %}
  - orch.m3.{{ part }}
{%- endfor %}

extend:
{%- for part in parts %}
{%- if not loop.first %}
  m3-{{ part }}-prechecked:
    milestone:
      # A window of theirs that a dead run left open has ended by then.
      - first: {{ parts[:loop.index0] | json }}
{%- endif %}
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
