# rrsync, which holds a key to one folder, comes with Debian's rsync.
transfer-packages:
  pkg.installed:
    - pkgs:
        - openssh-client
        - openssh-server
        - rsync
