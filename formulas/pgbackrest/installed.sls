pgbackrest-packages:
  pkg.installed:
    - pkgs: [pgbackrest, ca-certificates]
