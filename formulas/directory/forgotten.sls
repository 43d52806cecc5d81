# The dumps that a way back would need are gone.
{%- from 'directory/map.jinja' import directory with context %}

directory-dumps-gone:
  file.absent:
    - names:
        - {{ directory.folder }}
        - {{ directory.folder }}-back
