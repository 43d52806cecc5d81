firewall-packages:
  pkg.installed:
    - pkgs:
        - nftables
