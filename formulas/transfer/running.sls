include:
  - transfer.configured

transfer-sshd-running:
  service.running:
    - name: ssh
    - enable: true
    - reload: true
    - watch:
        - file: transfer-sshd
