# Keys and permissions go; what was copied stays.
{%- from 'transfer/map.jinja' import directory, sshd_config with context %}

transfer-absent-files:
  file.absent:
    - names:
        - {{ directory }}
        - {{ sshd_config }}

transfer-absent-sshd:
  service.running:
    - name: ssh
    - reload: true
    - watch:
        - file: transfer-absent-files
