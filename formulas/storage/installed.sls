{%- from 'storage/map.jinja' import storage, requirements with context %}

storage-packages:
  pkg.installed:
    - pkgs: {{ storage.packages | json }}

storage-group:
  group.present:
    - name: {{ storage.user }}
    - system: true

storage-user:
  user.present:
    - name: {{ storage.user }}
    - system: true
    - gid: {{ storage.user }}
    - home: {{ storage.directory }}
    - createhome: false
    - shell: /usr/sbin/nologin
    - require:
        - group: storage-group

storage-program:
  storage.installed:
    - name: {{ requirements }}
    - find_links: {{ storage.build.find_links | json }}
    - no_index: {{ storage.build.no_index | json }}
    - require:
        - pkg: storage-packages
