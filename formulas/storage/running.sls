{%- from 'storage/map.jinja' import storage, service, endpoint with context %}

include:
  - storage.configured

storage-running:
  service.running:
    - name: {{ service.name }}
    - enable: true
    - watch:
        - storage: storage-program
        - file: storage-keys
        - file: storage-crt
        - file: storage-key
        - file: storage-unit

storage-serving:
  storage.serving:
    - name: {{ endpoint }}
    - bucket: {{ storage.bucket }}
    - require:
        - service: storage-running
        - file: storage-authority
