# nftables and iproute2 are what the front door fences and counts with.
nginx-packages:
  pkg.installed:
    - pkgs:
        - nginx
        - nftables
        - iproute2
