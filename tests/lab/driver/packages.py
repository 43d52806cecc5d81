"""Which Debian packages the machines are made of, in one place."""

from __future__ import annotations

BASE = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "iproute2",
    "iputils-ping",
    "procps",
    "less",
    "python3",
    "openssh-server",
    "nftables",
    "rsync",
    "gpg",
    "gpg-agent",
    "curl",
    "ca-certificates",
    "openssl",
    "xz-utils",
    "zstd",
    "netbase",
    "tzdata",
    "sudo",
]
"""In every machine."""

BUILD = [
    "python3-dev",
    "python3-venv",
    "gcc",
    "g++",
    "make",
    "pkg-config",
    "libpq-dev",
    "libffi-dev",
    "libjpeg-dev",
    "zlib1g-dev",
    "libxml2-dev",
    "libxslt1-dev",
    "libssl-dev",
    "libicu-dev",
    "libldap-dev",
    "libsasl2-dev",
]
"""What building Python packages from source takes."""

MIRROR = [
    "nginx",
    "postgresql-15",
    "postgresql-client-15",
    "slapd",
    "ldap-utils",
    "sqlite3",
    "redis-server",
    "patroni",
    "etcd-server",
    "etcd-client",
    "pgbackrest",
    "libpq5",
    "acl",
    "zstd",
    "gnupg",
    "rsync",
    "haproxy",
    "dnsutils",
    "tcpdump",
    "strace",
    "lsof",
    "jq",
    "psmisc",
    "python3-psycopg2",
    "python3-pip",
    *BUILD,
]
"""What formulas and tests may install in a machine, with all that it needs."""
