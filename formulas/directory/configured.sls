{%- from 'directory/map.jinja' import directory, tls_dir with context %}

include:
  - directory.installed

directory-tls-folder:
  file.directory:
    - name: {{ tls_dir }}
    - user: root
    - group: openldap
    - mode: '0750'
    - require:
        - pkg: directory-packages

{%- for name, key in (('ca.crt', 'authority'), ('tls.crt', 'certificate:crt'), ('tls.key', 'certificate:key')) %}

directory-{{ name }}:
  file.managed:
    - name: {{ tls_dir }}/{{ name }}
    - contents_pillar: directory:{{ key }}
    - user: root
    - group: openldap
    - mode: '0640'
    - show_changes: false
    - require:
        - file: directory-tls-folder
{%- endfor %}
