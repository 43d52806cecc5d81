# The directory of another machine is here, compared, and served by TLS. Run again, it is
# loaded anew only if it has changed there. The formula itself must have been applied.
{%- from 'directory/map.jinja' import directory, tls_dir with context %}

directory-copied:
  slapd.copied:
    - name: {{ directory.folder }}
    - source: {{ directory.fetch.source | json }}
    - host: {{ directory.fetch.host | json }}
    - key: {{ directory.fetch.key | json }}
    - machine: {{ directory.name | json }}
    - authority: {{ tls_dir }}/ca.crt
