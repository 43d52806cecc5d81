# On the machine that the directory has left: what is written there would be lost.

directory-fenced:
  slapd.fenced:
    - name: slapd
