{%- from 'storage/map.jinja' import storage, service, endpoint, program, keys_file, authority_file with context %}

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
    - program: {{ program }}
    - keys: {{ keys_file }}
    - ca: {{ authority_file }}
    - bucket: {{ storage.bucket }}
    - require:
        - service: storage-running
        - file: storage-authority
