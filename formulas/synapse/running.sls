{%- from 'synapse/map.jinja' import synapse, service, releases_dir, current with context %}

include:
  - synapse.configured

synapse-current:
  file.symlink:
    - name: {{ current }}
    - target: {{ releases_dir }}/{{ synapse.version }}
    - atomic: true
    - require:
        - sls: synapse.configured

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
{%- else %}
  # Never enabled while it shall not run: a reboot would start a second Synapse.
  service.dead:
    - name: {{ service.name }}
    - enable: false
    - require:
        - file: synapse-current
{%- endif %}
