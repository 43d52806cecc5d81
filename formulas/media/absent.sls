# Programs, timer and keys go. The manifest and the media stay.
{%- from 'media/map.jinja' import program_dir, plugins_dir, settings_file, unit with context %}

media-absent-units:
  unit_set.only:
    - name: {{ unit }}
    - units: []

media-absent-files:
  file.absent:
    - names:
        - {{ settings_file }}
        - {{ program_dir }}
        - {{ plugins_dir }}/saltworks_media_provider.py
        - {{ plugins_dir }}/saltworks_media_local.py
        - {{ plugins_dir }}/saltworks_media_tls.py
    - require:
        - unit_set: media-absent-units
