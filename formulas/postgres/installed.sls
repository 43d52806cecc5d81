{%- from 'postgres/map.jinja' import version with context %}

# What Debian makes the first cluster with, so before the server is installed.
postgres-common:
  pkg.installed:
    - name: postgresql-common

postgres-first-cluster:
  file.managed:
    - name: /etc/postgresql-common/createcluster.d/saltworks.conf
    - contents: |
        # Managed by Salt (formula postgres).
        initdb_options = '--locale=C --encoding=UTF8 --data-checksums'
    - mode: '0644'
    - makedirs: true
    - require:
        - pkg: postgres-common

postgres-packages:
  pkg.installed:
    - name: postgresql-{{ version }}
    - require:
        - file: postgres-first-cluster
