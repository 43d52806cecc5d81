"""The proxy before Redis on this machine, asked by its own socket."""

from __future__ import annotations

import csv
import io
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_proxy"

#: Of formula redis_proxy.
SOCKET = "/run/haproxy/admin.sock"

LOOK_SECONDS = 0.2


def __virtual__() -> str:
    return __virtualname__


def status(path: str = SOCKET) -> dict[str, Any]:
    """Where Synapse's processes of this machine are sent to, and by whose word.

    :param path: HAProxy's socket.
    :returns: see :func:`read`.
    :raises CommandExecutionError: HAProxy does not answer.

    CLI Example:

    .. code-block:: bash

        salt worker-1 redis_proxy.status
    """
    try:
        with socket.socket(socket.AF_UNIX) as asks:
            asks.settimeout(5)
            asks.connect(path)
            # All proxies (-1), and of these frontends, backends and servers (7).
            asks.sendall(b"show stat -1 7 -1\n")
            said = b"".join(iter(lambda: asks.recv(1 << 16), b""))
    except OSError as error:
        raise CommandExecutionError(
            f"HAProxy does not answer at {path}: {error}; see systemctl status haproxy"
        ) from None
    return read(said.decode())


def serving(master: str, seconds: float = 20, path: str = SOCKET) -> dict[str, Any]:
    """Wait until Synapse's processes of this machine are sent to one Redis.

    :param master: its name.
    :param seconds: the bound.
    :returns: ``seconds`` waited.
    :raises CommandExecutionError: after the bound, with where they are sent to.

    CLI Example:

    .. code-block:: bash

        salt worker-1 redis_proxy.serving redis-2
    """
    begun = time.monotonic()
    while True:
        shown = status(path)
        waited = round(time.monotonic() - begun, 3)
        if shown["serves"] == master:
            return {"seconds": waited}
        if waited >= seconds:
            raise CommandExecutionError(
                f"the proxy sends to {shown['serves'] or 'nobody'} and not to {master}, after "
                f"{seconds:g} s; redis_proxy.status here says whom it reaches"
            )
        time.sleep(LOOK_SECONDS)


def read(text: str) -> dict[str, Any]:
    """What ``show stat`` says.

    Columns: https://docs.haproxy.org/2.6/management.html#9.1

    :returns: ``serves``: the Redis that sessions go to, ``''``: none; ``sessions`` that there are;
        ``redises``: name → ``says_master``, ``named_by`` (sentinels), ``followed_by``.
    """
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("# "))))
    up = list(_up(rows))
    names = sorted({name for backend, name in ((row["pxname"], row["svname"]) for row in rows)
                    if backend == f"to-{name}"})
    verdicts = [name for name in names if (f"to-{name}", name) in up]
    sessions = sum(int(row["scur"] or 0) for row in rows
                   if (row["pxname"], row["svname"]) == ("redis", "FRONTEND"))
    return {
        "serves": verdicts[0] if len(verdicts) == 1 else "",
        "sessions": sessions,
        "redises": {
            name: {
                "says_master": (f"master-{name}", name) in up,
                "named_by": sorted(who for backend, who in up if backend == f"named-{name}"),
                "followed_by": [other for other in names
                                if (f"follows-{name}-{other}", name) in up],
            }
            for name in names
        },
    }


def _up(rows: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row["svname"] not in ("FRONTEND", "BACKEND") and row["status"].startswith("UP"):
            yield row["pxname"], row["svname"]
