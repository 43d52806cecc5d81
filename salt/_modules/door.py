"""The front door: hold clients' requests while Synapse is away, refuse none.

nginx asks Synapse directly, one connection for each request. While the door is
closed it asks only a held systemd socket, in whose backlog requests wait; opening
runs systemd-socket-proxyd behind it. How it works as a whole: formulas/nginx/README.md.

Every function is bounded, returns how long it took and does nothing when there is
nothing to do.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "door"
__func_alias__ = {"open_": "open"}

LINK = "/etc/nginx/saltworks/door.conf"
TARGETS = "/etc/nginx/saltworks/door"
ENVIRONMENT = "/etc/saltworks/door.env"
ENVIRONMENTS = "/etc/saltworks/door"
FLAG = "/run/saltworks-door.open"
#: Brings the flag back after a reboot; /run is empty then.
TMPFILES = "/etc/tmpfiles.d/saltworks-door.conf"
CLOSED = "closed"
UNITS = ("saltworks-door", "saltworks-door-polls")
#: Requests behind it may be anything, so it is waited for, never cut.
MAIN_UNIT = "saltworks-door"
FENCE = "saltworks_door"
LOOK_SECONDS = 0.05
#: Looks in a row at which no connection may be established.
QUIET_LOOKS = 2


def __virtual__() -> str:
    return __virtualname__


def status() -> dict[str, Any]:
    """How the door stands.

    :returns: ``state`` (``open``, ``closed``, ``unset`` when there is no door yet, or
        ``between`` when an earlier run died half-way), ``target`` it is open to or
        None, ``flag``, ``fenced``, ``sockets`` (unit → systemd's state), ``targets``
        it could open to.
    """
    target = _target()
    flag = os.path.exists(FLAG)
    fenced = _fenced()
    if target is None:
        state = "unset"
    elif target == CLOSED:
        state = "between" if flag else "closed"
    else:
        aimed = _link_name(ENVIRONMENT) == target
        state = "open" if flag and not fenced and aimed else "between"
    return {
        "state": state,
        "target": None if target == CLOSED else target,
        "flag": flag,
        "fenced": fenced,
        "sockets": {unit: _active(f"{unit}.socket") for unit in UNITS},
        "targets": _targets(),
    }


def announce(seconds: float = 0) -> float:
    """Tell clients from now on to come back on a new connection for each request.

    Of use some 30 s (a long poll) before :func:`close`, so that no connection is idle
    when nginx reloads. :func:`open_` ends it.

    :param seconds: return when they have been told for so long; time since an earlier
        call counts.
    :returns: seconds waited here.
    """
    told: float = __salt__["nginx_config.notice"](seconds)  # type: ignore[name-defined]
    return told


def close(timeout: float = 10, fence: bool = True, notice: float = 3) -> dict[str, Any]:
    """Hold every new request from now on; those in flight go on (see :func:`drain`).

    :param timeout: bound in seconds for each of its two waits: for requests that
        were held the last time and are still in flight, and for nginx's old workers.
    :param fence: keep nginx's old workers from opening new connections to Synapse
        (rules of an own nft table, for nginx's user only), so that a drained
        Synapse stays drained.
    :param notice: seconds for which clients are told beforehand to come back on a new
        connection; time since :func:`announce` counts.
    :returns: ``changed``, ``seconds``, ``was`` (target), ``reload``, ``fenced``.
    :raises CommandExecutionError: the door could not be closed; it is open as before.
    """
    begun = time.monotonic()
    before = _target()
    if before is None:
        raise CommandExecutionError(
            f"no door here: {LINK} is missing; apply the formula nginx to this machine first"
        )
    if before == CLOSED and not os.path.exists(FLAG):
        return {"changed": False, "seconds": 0.0, "was": None, "fenced": _fenced()}
    for unit in UNITS:
        if _active(f"{unit}.socket") != "active":
            raise CommandExecutionError(
                f"{unit}.socket is not listening, requests could not be held; "
                f"see systemctl status {unit}.socket"
            )
    told = __salt__["nginx_config.notice"](notice)  # type: ignore[name-defined]
    held = _link_name(ENVIRONMENT) if before == CLOSED else before
    backends = _backends(held, "DOOR|FENCE") if held else []
    _flag(False)
    try:
        waited = _wait(
            lambda: _active(f"{MAIN_UNIT}.service") not in ("active", "deactivating"),
            timeout,
            f"{MAIN_UNIT}.service still passes on requests that an earlier closing held",
        )
        for unit in UNITS:
            _systemctl("stop", f"{unit}.service")
        _point(LINK, f"{TARGETS}/{CLOSED}.conf")
        reloaded = __salt__["nginx_config.reload"](timeout=timeout)  # type: ignore[name-defined]
        if fence:
            _raise_fence(backends)
    except CommandExecutionError:
        __salt__["nginx_config.withdraw"]()  # type: ignore[name-defined]
        if before != CLOSED:
            _point(LINK, f"{TARGETS}/{before}.conf")
            _flag(True)
            # The way out of a failed reload; its own failure would hide the first.
            subprocess.run(["systemctl", "reload", "nginx.service"], timeout=60, check=False)
        raise
    return {
        "changed": True,
        "seconds": round(time.monotonic() - begun, 3),
        "was": before,
        "notice_seconds": told,
        "held_before_seconds": waited,
        "reload": reloaded,
        "fenced": fence,
    }


def open_(target: str, timeout: float = 10, notice: float = 3) -> dict[str, Any]:
    """Let requests through to a target, first those that were held.

    :param target: name of a rendered target.
    :param timeout: bound in seconds for each of its two waits: for the target to
        accept connections, and for nginx's old workers.
    :param notice: as for :func:`close`, when the door was not closed.
    :returns: ``changed``, ``seconds``, ``was``, ``reload``.
    :raises CommandExecutionError: unknown target, or it accepts no connection; the
        door is as it was before.
    """
    begun = time.monotonic()
    if target not in _targets():
        raise CommandExecutionError(
            f"the door has no target {target!r}, only {', '.join(_targets()) or 'none'}; "
            "add it to pillar nginx:door:targets and apply the formula nginx"
        )
    now = status()
    if now["state"] == "open" and now["target"] == target:
        return {"changed": False, "seconds": 0.0, "was": target}
    for host, port in _backends(target):
        _wait(
            lambda host=host, port=port: _accepts(host, port),  # type: ignore[misc]
            timeout,
            f"target {target} does not accept connections on {host}:{port}",
        )
    was = _target()
    if was != CLOSED:
        __salt__["nginx_config.notice"](notice)  # type: ignore[name-defined]
    _point(ENVIRONMENT, f"{ENVIRONMENTS}/{target}.env")
    _lower_fence()
    _flag(True)
    _point(LINK, f"{TARGETS}/{target}.conf")
    reloaded = __salt__["nginx_config.reload"](timeout=timeout)  # type: ignore[name-defined]
    __salt__["nginx_config.withdraw"]()  # type: ignore[name-defined]
    return {
        "changed": True,
        "seconds": round(time.monotonic() - begun, 3),
        "was": was,
        "reload": reloaded,
    }


def first_target(target: str) -> bool:
    """Aim a door that was never aimed, without a reload; True if that was needed.

    :raises CommandExecutionError: the target is not rendered.
    """
    if _target() is not None:
        return False
    if target not in _targets():
        raise CommandExecutionError(f"the door has no target {target!r}; see {TARGETS}")
    _point(ENVIRONMENT, f"{ENVIRONMENTS}/{target}.env")
    _point(LINK, f"{TARGETS}/{target}.conf")
    _flag(True)
    return True


def drain(ports: int | str | list[int], timeout: float = 5) -> dict[str, Any]:
    """Wait until no request is in flight: no established connection to these ports here.

    To be run on Synapse's machine with the port of everything but long polls.

    :param ports: local TCP ports.
    :param timeout: bound in seconds.
    :returns: ``seconds`` until it was quiet, ``waited_for`` most connections seen.
    :raises CommandExecutionError: the bound passed; names the peers. Nothing was cut.
    """
    wanted = sorted(int(port) for port in ([ports] if isinstance(ports, int | str) else ports))
    begun = time.monotonic()
    most = quiet = 0
    while True:
        peers = established(wanted)
        most = max(most, len(peers))
        quiet = 0 if peers else quiet + 1
        passed = time.monotonic() - begun
        if quiet >= QUIET_LOOKS:
            return {"seconds": round(passed, 3), "waited_for": most, "ports": wanted}
        if passed > timeout and peers:
            raise CommandExecutionError(
                f"{len(peers)} requests still in flight on port {', '.join(map(str, wanted))} "
                f"after {timeout:g} s, from {', '.join(sorted(peers)[:10])}; "
                "open the door again and retry when they are done"
            )
        time.sleep(LOOK_SECONDS)


def established(ports: list[int]) -> list[str]:
    """Peers (``address:port``) of the established connections to these local TCP ports."""
    which = " or ".join(f"sport = :{int(port)}" for port in ports)
    done = subprocess.run(
        ["ss", "-Htn", "state", "established", f"( {which} )"],
        capture_output=True, text=True, timeout=20, check=False,
    )
    if done.returncode:
        raise CommandExecutionError(f"ss failed: {done.stderr.strip()}; is iproute2 installed?")
    return [line.split()[3] for line in done.stdout.splitlines() if len(line.split()) > 3]


def _wait(done: Callable[[], bool], timeout: float, otherwise: str) -> float:
    begun = time.monotonic()
    while not done():
        if time.monotonic() - begun > timeout:
            raise CommandExecutionError(f"{otherwise} after {timeout:g} s")
        time.sleep(LOOK_SECONDS)
    return round(time.monotonic() - begun, 3)


def _targets() -> list[str]:
    if not os.path.isdir(TARGETS):
        return []
    names = {os.path.splitext(name)[0] for name in os.listdir(TARGETS) if name.endswith(".conf")}
    return sorted(
        name for name in names - {CLOSED} if os.path.exists(f"{ENVIRONMENTS}/{name}.env")
    )


def _target() -> str | None:
    # A link to a target that is no longer rendered aims at nothing.
    return _link_name(LINK) if os.path.exists(LINK) else None


def _link_name(link: str) -> str | None:
    if not os.path.islink(link):
        return None
    return os.path.splitext(os.path.basename(os.readlink(link)))[0]


def _point(link: str, target: str) -> None:
    os.makedirs(os.path.dirname(link), exist_ok=True)
    temporary = f"{link}.new"
    if os.path.lexists(temporary):
        os.remove(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, link)


def _flag(up: bool) -> None:
    if up:
        for path, text in ((TMPFILES, f"f {FLAG} 0644 root root -\n"), (FLAG, "")):
            _write(path, text)
        return
    for path in (FLAG, TMPFILES):
        if os.path.exists(path):
            os.remove(path)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)


def _backends(target: str, which: str = "DOOR") -> list[tuple[str, int]]:
    """What is behind a target: what must answer before it opens; with ``FENCE`` workers, too.

    :param which: first parts of names in its environment file, with ``|`` between.
    """
    path = f"{ENVIRONMENTS}/{target}.env"
    try:
        with open(path, encoding="utf-8") as handle:
            rows = re.findall(
                rf"^(?:{which})_\w+=\[?([^\]\n]+?)\]?:(\d+)$", handle.read(), re.M
            )
    except FileNotFoundError:
        raise CommandExecutionError(f"{path} is missing; apply the formula nginx again") from None
    return [(host, int(port)) for host, port in rows]


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _active(unit: str) -> str:
    done = subprocess.run(
        ["systemctl", "show", "--property=ActiveState", "--value", unit],
        capture_output=True, text=True, timeout=20, check=False,
    )
    return done.stdout.strip()


def _systemctl(*args: str) -> None:
    done = subprocess.run(
        ["systemctl", *args], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise CommandExecutionError(f"systemctl {' '.join(args)} failed: {done.stderr.strip()}")


def fence_rules(uid: int, backends: list[tuple[str, int]]) -> str:
    """The nft script that answers a user's new connections to some places with a reset.

    :param uid: the user whose connections are meant.
    :param backends: numeric address and port of each place.
    """
    rules = [
        f"        meta skuid {uid} {'ip6' if ':' in host else 'ip'} daddr {host} tcp dport {port} "
        "tcp flags & (fin | syn | rst | ack) == syn counter reject with tcp reset"
        for host, port in sorted(set(backends))
    ]
    return "\n".join(
        [
            f"table inet {FENCE}",
            f"delete table inet {FENCE}",
            f"table inet {FENCE} {{",
            "    chain output {",
            "        type filter hook output priority -10; policy accept;",
            *rules,
            "    }",
            "}",
            "",
        ]
    )


def _raise_fence(backends: list[tuple[str, int]]) -> None:
    numeric = [
        (str(info[4][0]), port)
        for host, port in backends
        for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    uid = __salt__["nginx_config.worker_uid"]()  # type: ignore[name-defined]
    done = subprocess.run(
        ["nft", "-f", "-"], input=fence_rules(uid, numeric),
        capture_output=True, text=True, timeout=20, check=False,
    )
    if done.returncode:
        raise CommandExecutionError(
            f"nft could not fence nginx off from Synapse: {done.stderr.strip()[-300:]}; "
            "is nftables installed and CAP_NET_ADMIN there?"
        )


def _lower_fence() -> None:
    if _fenced():
        done = subprocess.run(
            ["nft", "delete", "table", "inet", FENCE],
            capture_output=True, text=True, timeout=20, check=False,
        )
        if done.returncode:
            raise CommandExecutionError(
                f"nft could not remove table inet {FENCE}: {done.stderr.strip()}; "
                f"remove it: nft delete table inet {FENCE}"
            )


def _fenced() -> bool:
    done = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, timeout=20, check=False
    )
    return f"table inet {FENCE}" in done.stdout.splitlines()
