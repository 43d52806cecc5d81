{%- from 'sentinel/map.jinja' import config_dir, settings, members, program with context %}

include:
  - sentinel.installed

sentinel-directory:
  file.directory:
    - name: {{ config_dir }}
    - user: root
    - group: redis
    - mode: '0750'
    - require:
        - pkg: sentinel-packages

{%- for kind, mode in (('crt', '0640'), ('key', '0640'), ('authority', '0644')) %}

sentinel-{{ kind }}:
  file.managed:
    - name: {{ config_dir }}/tls.{{ kind }}
    - contents_pillar: sentinel:certificate:{{ kind }}
    - user: root
    - group: redis
    - mode: '{{ mode }}'
    - show_changes: false
    - require:
        - file: sentinel-directory
{%- endfor %}

# Holds hashes of the passwords, and no more is needed.
sentinel-accounts:
  file.managed:
    - name: {{ config_dir }}/users.acl
    - source: salt://sentinel/files/users.acl.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - show_changes: false
    - require:
        - file: sentinel-directory

# Who is declared: whoever is not is forgotten at the next start. It has no secrets.
sentinel-members:
  file.managed:
    - name: {{ members }}
    - source: salt://sentinel/files/members.json.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - require:
        - file: sentinel-directory

sentinel-program:
  file.managed:
    - name: {{ program }}
    - source: salt://sentinel/files/sentinel_compose.py
    - mode: '0755'
    - makedirs: true

# The last: with it the unit may start.
sentinel-config:
  file.managed:
    - name: {{ settings }}
    - source: salt://sentinel/files/sentinel.conf.jinja
    - template: jinja
    - user: root
    - group: redis
    - mode: '0640'
    - show_changes: false
    - require:
        - file: sentinel-crt
        - file: sentinel-key
        - file: sentinel-authority
        - file: sentinel-accounts
        - file: sentinel-members
        - file: sentinel-program
