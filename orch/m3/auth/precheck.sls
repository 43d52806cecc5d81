# Everything that speaks against M3.auth, in one answer. Reads only, in test mode too.
m3-auth-prechecked:
  milestone.prechecked:
    - name: m3.auth
