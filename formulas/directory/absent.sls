# slapd no longer runs here, and its key is gone. Its configuration and data stay: nothing but
# a person deletes those.
{%- from 'directory/map.jinja' import directory, tls_dir with context %}

directory-absent-service:
  service.dead:
    - name: slapd
    - enable: false

directory-absent-unit:
  unit_set.only:
    - name: slapd.service
    - units: []
    - require:
        - service: directory-absent-service

# With the package its own start script goes; not its configuration.
directory-absent-package:
  pkg.removed:
    - name: slapd
    - require:
        - unit_set: directory-absent-unit

directory-absent-files:
  file.absent:
    - names:
        - {{ tls_dir }}
        - {{ directory.folder }}
    - require:
        - service: directory-absent-service
