# What the machine's role means today: the whole of its highstate.
include:
  - roles.{{ salt['pillar.get']('saltworks:role') }}
