include: {{ salt['pillar.get']('saltworks:states', []) | json }}
