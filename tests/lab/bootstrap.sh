#!/bin/sh
# Host packages that are missing, then the hash-locked .venv. Run again, it does only what is left.
# With the argument `test` also the servers whose programs the tests call; none of them is started.
set -eu
cd "$(dirname "$0")/../.."

say() { printf 'bootstrap: %s\n' "$*"; }
die() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }

PYTHON=/usr/bin/python3
WANTED="debootstrap systemd-container dnsmasq-base iproute2 nftables rsync python3-venv apt-utils
        openssl git procps util-linux ca-certificates gcc libc6-dev python3-dev"

TESTED="nginx postgresql-15 redis-server python3-psycopg2 etcd-server etcd-client patroni python3-idna
        pgbackrest redis-sentinel haproxy"

[ "${1:-}" != test ] || WANTED="$WANTED $TESTED"
command -v dpkg-query >/dev/null ||
    die 'this host has no dpkg. The lab needs Debian 12 or a close relative.'
missing=
for package in $WANTED; do
    case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" in
        installed) ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    [ "$(id -u)" -eq 0 ] ||
        die "host packages are missing and only root can install them:$missing. Run as root."
    say "installing host packages:$missing"
    log=$(mktemp)
    quiet=/usr/sbin/policy-rc.d
    trap 'rm -f "$log"; [ -z "${placed:-}" ] || rm -f "$quiet"' EXIT
    if [ ! -e "$quiet" ]; then
        placed=yes
        # Exit code 101: what is installed here must not be started.
        printf '#!/bin/sh\nexit 101\n' >"$quiet"
        chmod 755 "$quiet"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1
    then
        tail -n 20 "$log" >&2
        die "apt-get could not install:$missing. Check the host's apt sources and run again."
    fi
    [ -z "${placed:-}" ] || rm -f "$quiet"
    # Nor with the next boot of the host.
    case "$missing " in *" nginx "*) systemctl disable --quiet nginx || true ;; esac
    case "$missing " in *" postgresql-15 "*) systemctl disable --quiet postgresql || true ;; esac
    case "$missing " in *" redis-server "*) systemctl disable --quiet redis-server || true ;; esac
    case "$missing " in *" redis-sentinel "*) systemctl disable --quiet redis-sentinel || true ;; esac
    case "$missing " in *" haproxy "*) systemctl disable --quiet haproxy || true ;; esac
    case "$missing " in *" etcd-server "*) systemctl disable --quiet etcd || true ;; esac
    case "$missing " in *" patroni "*) systemctl disable --quiet patroni || true ;; esac
fi

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PYTHON is older than 3.11. Use Debian 12 or newer."

lock=$(sha256sum requirements/dev.txt | cut -d' ' -f1)
if [ "$(cat .venv/.stamp 2>/dev/null || true)" = "$lock" ]; then
    touch .venv/.stamp
    exit 0
fi
say 'making .venv from requirements/dev.txt'
if ! .venv/bin/python -c pass 2>/dev/null; then
    rm -rf .venv
    "$PYTHON" -m venv .venv
fi
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes \
    -r requirements/dev.txt ||
    die 'pip could not install requirements/dev.txt. See above; the host pip settings are used.'
printf '%s\n' "$lock" >.venv/.stamp
