{%- from 'storage/map.jinja' import storage, config_dir, keys_file, authority_file, unit_file, bucket_dir, ledger_dir, more_dirs with context %}

include:
  - storage.installed

{%- for path in [storage.directory, bucket_dir, ledger_dir] + more_dirs %}

storage-directory-{{ path }}:
  file.directory:
    - name: {{ path }}
    - user: {{ storage.user }}
    - group: {{ storage.user }}
    - mode: '0750'
    - require:
        - sls: storage.installed
    - require_in:
        - file: storage-unit
{%- endfor %}

storage-config-directory:
  file.directory:
    - name: {{ config_dir }}
    - user: root
    - group: {{ storage.user }}
    - mode: '0750'
    - require:
        - sls: storage.installed

# Read by systemd, which gives it to the service: its user need not.
storage-keys:
  file.managed:
    - name: {{ keys_file }}
    - source: salt://storage/files/keys.env.jinja
    - template: jinja
    - mode: '0600'
    - show_changes: false
    - require:
        - file: storage-config-directory

{%- for name, path, mode in (('crt', config_dir ~ '/tls.crt', '0640'), ('key', config_dir ~ '/tls.key', '0640'), ('authority', authority_file, '0644')) %}

storage-{{ name }}:
  file.managed:
    - name: {{ path }}
    - contents_pillar: storage:certificate:{{ name }}
    - user: root
    - group: {{ storage.user }}
    - mode: '{{ mode }}'
    - show_changes: false
    - require:
        - file: storage-config-directory
{%- endfor %}

storage-unit:
  file.managed:
    - name: {{ unit_file }}
    - source: salt://storage/files/storage.service.jinja
    - template: jinja
    - mode: '0644'
