# Where Synapse finds its database and its standbys: read for each new connection, so nobody
# restarts for it.
{%- from 'synapse/map.jinja' import synapse, service_file, standbys_file with context %}

{%- for path, source, wanted in (
    (service_file, 'pg_service.conf', synapse.databases.services),
    (standbys_file, 'standbys.json', synapse.databases.services)) %}

synapse-{{ source }}:
{%- if wanted %}
  file.managed:
    - name: {{ path }}
    - source: salt://synapse/files/{{ source }}.jinja
    - template: jinja
    - user: root
    - group: {{ synapse.group }}
    - mode: '0640'
    - makedirs: true
    - dir_mode: '0750'
{%- else %}
  file.absent:
    - name: {{ path }}
{%- endif %}
{%- endfor %}
