{%- from 'synapse/map.jinja' import synapse, service, worker_unit, releases_dir, current with context %}

include:
  - synapse.configured

synapse-current:
  file.symlink:
    - name: {{ current }}
    - target: {{ releases_dir }}/{{ synapse.version }}
    - atomic: true
    - require:
        - sls: synapse.configured
{%- if synapse.main %}

synapse-service:
{%- if service.running %}
  service.running:
    - name: {{ service.name }}
    - enable: {{ service.enabled | json }}
    - require:
        - file: synapse-current
    - watch:
        - synapse_release: synapse-release
        - synapse_release: synapse-config
        - file: synapse-current
        - file: synapse-signing-key
        - file: synapse-log-config
        - file: synapse-unit
{%- for library in synapse.libraries | sort %}
        - file: synapse-library-{{ library }}
{%- endfor %}
{%- else %}
  # Never enabled while it shall not run: a reboot would start a second Synapse.
  service.dead:
    - name: {{ service.name }}
    - enable: false
    - require:
        - file: synapse-current
{%- endif %}
{%- endif %}
{%- for name, worker in synapse.workers | dictsort %}

synapse-worker-{{ name }}:
  service.running:
    - name: {{ worker_unit }}@{{ name }}
    - enable: true
    - require:
        - file: synapse-current
    - watch:
        - synapse_release: synapse-release
        - synapse_release: synapse-config
        - synapse_release: synapse-worker-{{ name }}-config
        - file: synapse-current
        - file: synapse-signing-key
        - file: synapse-log-config
        - file: synapse-worker-unit
{%- for library in synapse.libraries | sort %}
        - file: synapse-library-{{ library }}
{%- endfor %}

synapse-worker-{{ name }}-serves:
  homeserver.serving:
    - name: {{ worker.url }}
    - require:
        - service: synapse-worker-{{ name }}
{%- endfor %}
{%- if synapse.workers or not synapse.main %}

synapse-only-these-workers:
  unit_set.only:
    - name: {{ worker_unit }}@
    - units:
        - {{ worker_unit }}@.service
{%- for name in synapse.workers | sort %}
        - {{ worker_unit }}@{{ name }}.service
{%- endfor %}
    - require:
        - file: synapse-current
{%- endif %}
