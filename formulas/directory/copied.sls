# The directory of another machine is here, compared, and served by TLS. Run again, it is
# loaded anew only if it has changed there.
{%- from 'directory/map.jinja' import directory, tls_dir with context %}

include:
  - directory.configured

directory-copied:
  slapd.copied:
    - name: {{ directory.folder }}
    - source: {{ directory.fetch.source }}
    - host: {{ directory.fetch.host | json }}
    - key: {{ directory.fetch.key }}
    - machine: {{ directory.name | json }}
    - authority: {{ tls_dir }}/ca.crt
    - require:
        - sls: directory.configured
