{%- from 'synapse/map.jinja' import synapse, plugin_dirs, libraries_dir with context %}

synapse-packages:
  pkg.installed:
    - pkgs: {{ synapse.packages | json }}

{%- if synapse.manage_user %}

synapse-group:
  group.present:
    - name: {{ synapse.group }}
    - system: true

synapse-user:
  user.present:
    - name: {{ synapse.user }}
    - system: true
    - gid: {{ synapse.group }}
    - home: {{ synapse.data_dir }}
    - createhome: false
    - shell: /usr/sbin/nologin
    - require:
        - group: synapse-group
{%- endif %}

synapse-release:
  synapse_release.present:
    - name: {{ synapse.version | string | json }}
    - source: {{ synapse.release.source | json }}
    - source_hash: {{ synapse.release.source_hash | json }}
    - require:
        - pkg: synapse-packages

{%- for name, plugin in synapse.plugins | dictsort %}

synapse-plugin-{{ name }}:
  synapse_plugin.unpacked:
    - name: {{ plugin_dirs[name] }}
    - source: {{ plugin.source | json }}
    - source_hash: {{ plugin.source_hash | json }}
{%- endfor %}

{%- for name, source in synapse.libraries | dictsort %}

synapse-library-{{ name }}:
  file.recurse:
    - name: {{ libraries_dir }}/{{ name }}
    - source: {{ source }}
    - exclude_pat: '*__pycache__*'
    - clean: true
    - file_mode: '0644'
    - dir_mode: '0755'
{%- endfor %}
