# What a cluster needs to follow another: whom to trust, and the password.
{%- from 'postgres/map.jinja' import keys_dir, passfile, authority with context %}

postgres-keys-directory:
  file.directory:
    - name: {{ keys_dir }}
    - user: root
    - group: postgres
    - mode: '0750'
    - makedirs: true

postgres-authority:
  file.managed:
    - name: {{ authority }}
    - contents_pillar: postgres:certificate:authority
    - user: root
    - group: postgres
    - mode: '0640'
    - require:
        - file: postgres-keys-directory

postgres-passfile:
  file.managed:
    - name: {{ passfile }}
    - source: salt://postgres/files/replication.pgpass.jinja
    - template: jinja
    - user: postgres
    - group: postgres
    - mode: '0600'
    - show_changes: false
    - require:
        - file: postgres-keys-directory
