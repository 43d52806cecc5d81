{%- from 'synapse/map.jinja' import synapse, unit_file, config_file, certificates_dir, media_dir, environment, service, worker_unit, workers_dir with context %}

include:
  - synapse.installed
  - synapse.databases

synapse-config-directory:
  file.directory:
    - name: {{ synapse.config_dir }}
    - user: root
    - group: {{ synapse.group }}
    - mode: '0750'
    - require:
        - sls: synapse.installed

{%- for path in [synapse.data_dir, media_dir] | unique %}

synapse-directory-{{ path }}:
  file.directory:
    - name: {{ path }}
    - user: {{ synapse.user }}
    - group: {{ synapse.group }}
{%- if synapse.manage_user %}
    - mode: '0750'
{%- endif %}
    - require:
        - sls: synapse.installed
    - require_in:
        - synapse_release: synapse-config
{%- endfor %}

synapse-signing-key:
  file.managed:
    - name: {{ synapse.config_dir }}/signing.key
    - contents_pillar: synapse:signing_key
    - user: root
    - group: {{ synapse.group }}
    - mode: '0640'
    - show_changes: false
    - require:
        - file: synapse-config-directory

synapse-log-config:
  file.managed:
    - name: {{ synapse.config_dir }}/log.yaml
    - source: salt://synapse/files/log.yaml.jinja
    - template: jinja
    - user: root
    - group: {{ synapse.group }}
    - mode: '0640'
    - require:
        - file: synapse-config-directory

synapse-certificates-directory:
  file.directory:
    - name: {{ certificates_dir }}
    - user: root
    - group: {{ synapse.group }}
    - mode: '0750'
    - clean: true
    - require:
        - file: synapse-config-directory
{%- for name in synapse.certificates | sort %}
        - file: synapse-certificate-{{ name }}
{%- endfor %}
    - require_in:
        - synapse_release: synapse-config

{%- for name in synapse.certificates | sort %}

synapse-certificate-{{ name }}:
  file.managed:
    - name: {{ certificates_dir }}/{{ name }}.pem
    - contents_pillar: synapse:certificates:{{ name }}
    - user: root
    - group: {{ synapse.group }}
    - mode: '0640'
    - makedirs: true
    - require:
        - file: synapse-config-directory
{%- endfor %}

# Read by the release itself before it takes the old one's place.
synapse-config:
  synapse_release.configured:
    - name: {{ config_file }}
    - version: {{ synapse.version | string | json }}
    - config_pillar: synapse:config
    - defaults:
        signing_key_path: {{ synapse.config_dir }}/signing.key
        log_config: {{ synapse.config_dir }}/log.yaml
        media_store_path: {{ media_dir }}
    - user: {{ synapse.user }}
    - group: {{ synapse.group }}
    - environment: {{ environment | json }}
{%- if not synapse.main %}
    - read_by:
{%- for name in synapse.workers | sort %}
        {{ workers_dir }}/{{ name }}.yaml: synapse:workers:{{ name }}:config
{%- endfor %}
{%- endif %}
    - require:
        - sls: synapse.databases
        - file: synapse-signing-key
        - file: synapse-log-config

synapse-upcoming-config:
{%- if synapse.upcoming %}
  synapse_release.configured:
    - name: {{ synapse.config_dir }}/upcoming.yaml
    - version: {{ synapse.version | string | json }}
    - config_pillar: synapse:upcoming
    - defaults:
        signing_key_path: {{ synapse.config_dir }}/signing.key
        log_config: {{ synapse.config_dir }}/log.yaml
        media_store_path: {{ media_dir }}
    - user: {{ synapse.user }}
    - group: {{ synapse.group }}
    - environment: {{ environment | json }}
    - require:
        - synapse_release: synapse-config
{%- else %}
  file.absent:
    - name: {{ synapse.config_dir }}/upcoming.yaml
    - require:
        - synapse_release: synapse-config
{%- endif %}
{%- if not synapse.keep_previous %}

synapse-previous-config:
  file.absent:
    - name: {{ synapse.config_dir }}/previous.yaml
    - require:
        - synapse_release: synapse-config
{%- endif %}
{%- if synapse.main %}

synapse-unit:
  file.managed:
    - name: {{ unit_file }}
    - source: salt://synapse/files/synapse.service.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - sls: synapse.installed
{%- else %}

synapse-no-main:
  unit_set.only:
    - name: {{ service.name }}.service
    - units: []
    - require:
        - sls: synapse.installed
{%- endif %}
{%- if synapse.workers %}

synapse-workers-directory:
  file.directory:
    - name: {{ workers_dir }}
    - user: root
    - group: {{ synapse.group }}
    - mode: '0750'
    - clean: true
    - exclude_pat: 'E@^({{ synapse.workers | sort | join('|') }})[.]yaml$'
    - require:
        - file: synapse-config-directory
{%- for name in synapse.workers | sort %}

synapse-worker-{{ name }}-config:
  synapse_release.configured:
    - name: {{ workers_dir }}/{{ name }}.yaml
    - version: {{ synapse.version | string | json }}
    - base: {{ config_file }}
    - config_pillar: synapse:workers:{{ name }}:config
    - user: {{ synapse.user }}
    - group: {{ synapse.group }}
    - environment: {{ environment | json }}
    - require:
        - synapse_release: synapse-config
        - file: synapse-workers-directory
{%- endfor %}

synapse-worker-unit:
  file.managed:
    - name: /etc/systemd/system/{{ worker_unit }}@.service
    - source: salt://synapse/files/worker.service.jinja
    - template: jinja
    - mode: '0644'
    - require:
        - sls: synapse.installed
{%- endif %}
