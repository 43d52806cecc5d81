# On the machine where the directory was found: it takes writes, and is dumped for the copy.
{%- from 'directory/map.jinja' import directory with context %}

directory-offered:
  slapd.offered:
    - name: {{ directory.folder }}
