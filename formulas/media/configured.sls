{%- from 'media/map.jinja' import media, program_dir, plugins, plugins_dir, settings_file, state_dir, unit, unit_dir with context %}

{#- What the program imports lies beside it, and is there before it. #}
{%- set programs = [
  'saltworks_media_tree.py',
  'saltworks_media_manifest.py',
  'saltworks_media_tls.py',
  'saltworks_media_store.py',
  'saltworks_media.py',
] %}
{%- for folder, names in ((program_dir, programs), (plugins_dir, plugins)) %}
{%- for name in names %}

media-{{ folder }}/{{ name }}:
  file.managed:
    - name: {{ folder }}/{{ name }}
    - source: salt://media/files/{{ name }}
    - mode: '0644'
    - makedirs: true
    - dir_mode: '0755'
{%- endfor %}
{%- endfor %}

media-state-parent:
  file.directory:
    - name: /var/lib/saltworks
    - mode: '0755'

media-state:
  file.directory:
    - name: {{ state_dir }}
    - user: {{ media.user }}
    - group: {{ media.user }}
    - mode: '0750'
    - require:
        - file: media-state-parent

media-settings:
  file.managed:
    - name: {{ settings_file }}
    - source: salt://media/files/media.json.jinja
    - template: jinja
    - user: root
    - group: {{ media.user }}
    - mode: '0640'
    - makedirs: true
    - show_changes: false

{%- for kind in ('service', 'timer') %}

media-cache-{{ kind }}:
  file.managed:
    - name: {{ unit_dir }}/{{ unit }}.{{ kind }}
    - source: salt://media/files/cache.{{ kind }}.jinja
    - template: jinja
    - mode: '0644'
{%- endfor %}
