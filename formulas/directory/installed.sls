{%- from 'directory/map.jinja' import unit_file with context %}

# Before the package: the empty directory that comes with it is never served.
directory-unit:
  file.managed:
    - name: {{ unit_file }}
    - source: salt://directory/files/slapd.service.jinja
    - template: jinja
    - mode: '0644'

directory-packages:
  pkg.installed:
    - pkgs:
        - ldap-utils
        - slapd
    - require:
        - file: directory-unit
