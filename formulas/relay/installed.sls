relay-packages:
  pkg.installed:
    - pkgs:
        - nftables
        - systemd
