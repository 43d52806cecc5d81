# The cluster stops and does not start again; its data folder is for a person to delete.
{%- from 'postgres/map.jinja' import cluster, keys_dir with context %}

postgres-retired:
  pgstandby.retired:
    - name: cluster
    - cluster: {{ cluster | json }}

postgres-keys-gone:
  file.absent:
    - name: {{ keys_dir }}
    - require:
        - pgstandby: postgres-retired
