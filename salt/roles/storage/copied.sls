# On Synapse's machine, while it serves: every file of its media is sent; run again it goes on.
{%- from 'media/map.jinja' import media with context %}

roles-storage-copied:
  media_store.copied:
    - name: {{ media.directory }}
    - user: {{ media.user }}
