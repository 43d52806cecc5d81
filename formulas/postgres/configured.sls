{%- from 'postgres/map.jinja' import config_dir with context %}

include:
  - postgres.installed
  - postgres.settings

postgres-hba:
  file.managed:
    - name: {{ config_dir }}/pg_hba.conf
    - source: salt://postgres/files/pg_hba.conf.jinja
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0640'
    - require:
        - sls: postgres.installed

# postgres.absent says disabled here.
postgres-start:
  file.managed:
    - name: {{ config_dir }}/start.conf
    - contents: |
        # Managed by Salt (formula postgres).
        auto
    - user: postgres
    - group: postgres
    - mode: '0644'
    - require:
        - sls: postgres.installed
