# Until the directory is in use it is started by what loads it, and by nothing else.
{%- from 'directory/map.jinja' import directory with context %}

include:
  - directory.configured
{%- if directory.serving %}

directory-service:
  service.running:
    - name: slapd
    - enable: true
    - watch:
        - file: directory-unit
        - file: directory-ca.crt
        - file: directory-tls.crt
        - file: directory-tls.key
{%- endif %}
