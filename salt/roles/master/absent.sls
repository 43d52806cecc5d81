# The releases built here are no longer served; the master itself is not ours to remove.
roles-master-releases-gone:
  file.absent:
    - name: {{ salt['pillar.get']('synapse:build:directory') }}
