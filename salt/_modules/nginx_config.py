"""nginx's configuration on disk and the one it runs with: test, compare, reload, wait.

nginx is only ever reloaded here, never restarted: a restart refuses connections.
"""

from __future__ import annotations

import glob
import hashlib
import os
import subprocess
import time
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "nginx_config"

CONF_DIR = "/etc/nginx/saltworks"
LOADED = "/var/lib/saltworks/nginx.loaded"
#: As long as it exists, our site ends the connection with each answer.
LEAVING = "/run/saltworks-nginx.leaving"
PROC = "/proc"
SHUTTING_DOWN = "is shutting down"
LOOK_SECONDS, NOTICE_LOOK_SECONDS = 0.02, 0.1


def __virtual__() -> str:
    return __virtualname__


def test() -> str:
    """The whole configuration as nginx itself reads it from disk.

    :raises CommandExecutionError: nginx refuses it; a running nginx is not affected.
    """
    done = subprocess.run(
        ["nginx", "-T", "-q"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        raise CommandExecutionError(
            "nginx refuses the configuration on disk; the running nginx keeps its old one, "
            f"correct this and apply again: {done.stderr.strip()[-800:]}"
        )
    return done.stdout


def digest() -> str:
    """One hash over all that nginx reads: its configuration, our files and where links point.

    :raises CommandExecutionError: nginx refuses the configuration.
    """
    total = hashlib.sha256(test().encode())
    for folder, folders, files in os.walk(CONF_DIR):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            total.update(path.encode())
            if os.path.islink(path):
                total.update(os.readlink(path).encode())
            else:
                with open(path, "rb") as handle:
                    total.update(handle.read())
    return total.hexdigest()


def loaded() -> str:
    """The :func:`digest` of what nginx was last told to load; empty if that is not known."""
    try:
        with open(LOADED, encoding="utf-8") as handle:
            return handle.read().strip()
    except FileNotFoundError:
        return ""


def notice(seconds: float) -> float:
    """Tell clients for a while that their connection ends with the answer.

    A reload closes idle connections; a client that sends on one at that moment gets
    no answer. With a notice of as long as requests take, no connection is idle then;
    long polls take 30 s. Goes on until :func:`withdraw`.

    :param seconds: how long it shall have been told; what was told already counts.
    :returns: the seconds waited.
    """
    begun = time.monotonic()
    while True:
        try:
            told = time.time() - os.stat(LEAVING).st_mtime
        except FileNotFoundError:
            # Not yet; or somebody else's is withdrawn, and it begins anew.
            with open(LEAVING, "w", encoding="utf-8"):
                told = 0.0
        # A clock set back must not make this longer than was asked for.
        left = min(seconds - told, seconds)
        if left <= 0:
            return round(time.monotonic() - begun, 3)
        time.sleep(min(left, NOTICE_LOOK_SECONDS))


def idle_seconds(site: str) -> float | None:
    """Seconds since a site's last request ended; None when none was ever logged.

    :param site: name of the site, as in the formula's pillar.
    """
    newest = None
    for path in glob.glob(f"/var/log/nginx/{site}.access.log*"):
        status = os.stat(path)
        if status.st_size and (newest is None or status.st_mtime > newest):
            newest = status.st_mtime
    return None if newest is None else max(0.0, time.time() - newest)


def withdraw() -> None:
    """Connections may live on after an answer again."""
    if os.path.exists(LEAVING):
        os.remove(LEAVING)


def reload(timeout: float = 10) -> dict[str, Any]:
    """Reload nginx and wait until no old worker accepts a connection any more.

    An old worker that still serves its last requests is fine: it is shutting down.

    :param timeout: bound in seconds for the new workers to have taken over.
    :returns: ``seconds`` it took, ``old`` and ``new`` numbers of workers,
        ``finishing`` of the old ones that still serve requests.
    :raises CommandExecutionError: bad configuration (nothing was reloaded), nginx is
        not running, or old workers still accept after the timeout.
    """
    wanted = digest()
    master = _master()
    before = set(accepting(master))
    begun = time.monotonic()
    done = subprocess.run(
        ["systemctl", "reload", "nginx.service"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    if done.returncode:
        raise CommandExecutionError(
            f"systemctl reload nginx failed: {done.stderr.strip()}; see journalctl -u nginx"
        )
    while True:
        now = set(accepting(master))
        if now and not now & before:
            break
        if time.monotonic() - begun > timeout:
            raise CommandExecutionError(
                f"{len(now & before)} old nginx workers (pid {sorted(now & before)}) still accept "
                f"connections {timeout:g} s after the reload; see /var/log/nginx/error.log"
            )
        time.sleep(LOOK_SECONDS)
    os.makedirs(os.path.dirname(LOADED), exist_ok=True)
    with open(f"{LOADED}.new", "w", encoding="utf-8") as handle:
        handle.write(f"{wanted}\n")
    os.replace(f"{LOADED}.new", LOADED)
    return {
        "seconds": round(time.monotonic() - begun, 3),
        "old": len(before),
        "new": len(now),
        "finishing": len([pid for pid in before if os.path.exists(f"{PROC}/{pid}")]),
    }


def accepting(master: int | None = None) -> list[int]:
    """Process ids of the workers that accept connections.

    :param master: process id of nginx's master; asked of systemd when not given.
    """
    parent = master or _master()
    return [
        pid
        for pid, title in _children(parent)
        if title.startswith("nginx: worker process") and SHUTTING_DOWN not in title
    ]


def worker_uid() -> int:
    """User id that nginx's workers run as.

    :raises CommandExecutionError: nginx does not run.
    """
    workers = accepting()
    if not workers:
        raise CommandExecutionError("nginx has no worker; see systemctl status nginx")
    return os.stat(f"{PROC}/{workers[0]}").st_uid


def _master() -> int:
    done = subprocess.run(
        ["systemctl", "show", "--property=MainPID", "--value", "nginx.service"],
        capture_output=True, text=True, timeout=20, check=False,
    )
    pid = int(done.stdout.strip() or 0)
    if not pid:
        raise CommandExecutionError(
            "nginx.service has no running process; start it: systemctl start nginx"
        )
    return pid


def _children(parent: int) -> list[tuple[int, str]]:
    rows = []
    for name in os.listdir(PROC):
        if not name.isdigit():
            continue
        try:
            with open(f"{PROC}/{name}/stat", encoding="utf-8", errors="replace") as handle:
                # The command name in parentheses may itself hold spaces and parentheses.
                ppid = int(handle.read().rpartition(")")[2].split()[1])
            if ppid != parent:
                continue
            with open(f"{PROC}/{name}/cmdline", "rb") as handle:
                title = handle.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        rows.append((int(name), title))
    return rows
