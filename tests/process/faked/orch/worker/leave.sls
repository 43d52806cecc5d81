# orch/worker/leave.sls without what would change the machine that the tests run on.
{%- set worker = pillar.worker %}
{%- for step in ['draining', 'emptied', 'gone'] %}

leave-{{ step }}:
  worker.{{ step }}:
    - name: {{ worker }}
{%- if not loop.first %}
    - require:
        - worker: leave-{{ loop.previtem }}
{%- endif %}
{%- endfor %}
