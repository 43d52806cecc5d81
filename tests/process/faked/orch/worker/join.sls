# orch/worker/join.sls without what would change the machine that the tests run on.
{%- set worker = pillar.worker %}
{%- set steps = ['begun', 'synced', 'healthy', 'registered', 'joined'] %}
{%- for step in steps %}

join-{{ step }}:
  worker.{{ step }}:
    - name: {{ worker }}
{%- if not loop.first %}
    - require:
        - worker: join-{{ loop.previtem }}
{%- endif %}
{%- endfor %}
