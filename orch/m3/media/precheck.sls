# Everything that speaks against M3.media, in one answer. Reads only, in test mode too.
m3-media-prechecked:
  milestone.prechecked:
    - name: m3.media
