# Programs, timer and keys go. The manifest and the media stay.
{%- from 'media/map.jinja' import program_dir, plugins, plugins_dir, settings_file, unit with context %}

media-absent-units:
  unit_set.only:
    - name: {{ unit }}
    - units: []

media-absent-files:
  file.absent:
    - names:
        - {{ settings_file }}
        - {{ program_dir }}
{%- for name in plugins %}
        - {{ plugins_dir }}/{{ name }}
{%- endfor %}
    - require:
        - unit_set: media-absent-units
