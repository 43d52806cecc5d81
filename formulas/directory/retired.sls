# On the machine that the directory has left, for good. Package, configuration and data stay:
# nothing but a person deletes those.

include:
  - directory.forgotten

directory-retired-service:
  service.dead:
    - name: slapd
    - enable: false

directory-retired-mask:
  service.masked:
    - name: slapd
    - require:
        - service: directory-retired-service
