# Clients have been told to come back on new connections, before nginx passes them on.
legacy-announced:
  door.announced:
    - name: door
    - seconds: {{ salt['pillar.get']('legacy:announce_seconds') }}
