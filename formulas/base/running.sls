base-ssh:
  service.running:
    - name: ssh
    - enable: true
