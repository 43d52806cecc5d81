{%- from 'media/map.jinja' import media, unit with context %}

include:
  - media.configured

media-cache-timer-running:
{%- if media.prune %}
  service.running:
    - name: {{ unit }}.timer
    - enable: true
    - require:
        - file: media-settings
    - watch:
        - file: media-cache-timer
        - file: media-cache-service
{%- else %}
  # Nothing may go from here before the store is what Synapse reads.
  service.dead:
    - names:
        - {{ unit }}.timer
        - {{ unit }}.service
    - enable: false
    - require:
        - file: media-cache-timer
        - file: media-cache-service
{%- endif %}
