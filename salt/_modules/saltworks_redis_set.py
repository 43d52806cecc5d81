"""The set of Redis machines that this machine's Sentinel watches, asked and told.

Everybody is asked at once, by TLS and with Sentinel's own accounts; names in certificates are
verified.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_set"

__salt__: dict[str, Any]

#: Of formula sentinel.
CONFIG_DIR = "/etc/redis-sentinel"

#: For all answers of one of them, seconds.
ANSWER_SECONDS = 2.0
LOOK_SECONDS = 0.3


def __virtual__() -> str:
    return __virtualname__


def status() -> dict[str, Any]:
    """How the set stands, by what every Redis and every sentinel says itself.

    :returns: see ``redis_rules.joined``.
    :raises CommandExecutionError: this machine has no Sentinel of formula sentinel.

    CLI Example:

    .. code-block:: bash

        salt dcs-1 redis_set.status
    """
    own = _own()
    members = own["members"]
    asks = {}
    for name, address in members["servers"].items():
        at = (name, address, members["server_port"])
        asks[f"redis {name}"] = (at, own["redis"], ["INFO", "replication"])
    for name, address in members["sentinels"].items():
        words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", members["set"]]
        asks[f"sentinel {name}"] = ((name, address, members["port"]), own["sentinel"], words)
    said, named, errors = {}, {}, {}
    with ThreadPoolExecutor(len(asks)) as pool:
        waited = {key: pool.submit(_asked, own["authority"], *ask) for key, ask in asks.items()}
        for key, future in waited.items():
            kind, _, name = key.partition(" ")
            try:
                answer = future.result()
            except OSError as error:
                errors[key] = str(error) or type(error).__name__
                continue
            if kind == "redis":
                said[name] = __salt__["redis_rules.replication"](answer)
            else:
                named[name] = answer[0] if answer else ""
    shown: dict[str, Any] = __salt__["redis_rules.joined"](members, said, named, errors)
    return shown


def agreed(seconds: float = 20, master: str = "") -> dict[str, Any]:
    """Wait until all of the set is there and agrees.

    :param seconds: the bound.
    :param master: who is to be the master; ``''``: whoever is.
    :returns: ``seconds`` waited, ``master``.
    :raises CommandExecutionError: after the bound, with what is wrong.

    CLI Example:

    .. code-block:: bash

        salt dcs-1 redis_set.agreed 30
    """
    return _waited(
        seconds, lambda shown: not shown["wrong"] and master in ("", shown["master"])
    )


def failover(seconds: float = 20) -> dict[str, Any]:
    """Make a replica the master, planned; Synapse's processes come along by themselves.

    :param seconds: bound, until all of the set agrees on the new one.
    :returns: ``before`` and ``master``; ``seconds`` that it took.
    :raises CommandExecutionError: it must not be begun, or is not done within the bound.

    CLI Example:

    .. code-block:: bash

        salt dcs-1 redis_set.failover
    """
    shown = status()
    if why := __salt__["redis_rules.candidate"](shown):
        raise CommandExecutionError(f"not begun: {why}; see redis_set.status")
    before = shown["master"]
    own = _own()
    members = own["members"]
    # Any of them will do; its own may be the one that is away.
    name = next(name for name, row in shown["sentinels"].items() if row["up"])
    at = (name, members["sentinels"][name], members["port"])
    try:
        _asked(own["authority"], at, own["sentinel"], ["SENTINEL", "FAILOVER", members["set"]])
    except OSError as error:
        raise CommandExecutionError(
            f"the sentinel of {name} does not fail over: {error}. A failover that is under way, or "
            "was just now, is waited for; see redis_set.status"
        ) from None
    done = _waited(
        seconds, lambda shown: not shown["wrong"] and shown["master"] not in ("", before)
    )
    return {"before": before, **done}


def _waited(seconds: float, good: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    begun = time.monotonic()
    while True:
        shown = status()
        waited = round(time.monotonic() - begun, 3)
        if good(shown):
            return {"seconds": waited, "master": shown["master"]}
        if waited >= seconds:
            wrong = "; ".join(f"{row['what']} ({row['next']})" for row in shown["wrong"])
            raise CommandExecutionError(
                f"the Redis machines do not agree after {seconds:g} s: "
                f"{wrong or 'the master is ' + shown['master']}"
            )
        time.sleep(LOOK_SECONDS)


def _own() -> dict[str, Any]:
    """Who is declared, and the accounts, out of formula sentinel's files."""
    folder = Path(CONFIG_DIR)
    try:
        members = json.loads((folder / "members.json").read_text("utf-8"))
        lines = (folder / "sentinel.conf").read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise CommandExecutionError(
            f"{error.filename} is not there: apply the state sentinel to this machine first"
        ) from None
    words = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines}
    for line in lines:
        # The only values with blanks in them, so they are quoted.
        key, quote, value = line.partition(' "')
        if quote:
            words[key] = json.loads(f'"{value}')
    of_set = members["set"]
    return {
        "members": members,
        "authority": str(folder / "tls.authority"),
        "redis": (words[f"sentinel auth-user {of_set}"], words[f"sentinel auth-pass {of_set}"]),
        "sentinel": (words["sentinel sentinel-user"], words["sentinel sentinel-pass"]),
    }


def _asked(
    authority: str, at: tuple[str, str, int], account: tuple[str, str], words: list[str]
) -> Any:
    """One answer.

    :param at: name in the certificate, address, port.
    :raises OSError: it did not answer in time, or answered with an error.
    """
    name, address, port = at
    context = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection((address, port), timeout=ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
        secure.makefile("rwb") as stream,
    ):
        for command in (["AUTH", *account], words):
            stream.write(b"*%d\r\n" % len(command))
            for word in command:
                raw = word.encode()
                stream.write(b"$%d\r\n%s\r\n" % (len(raw), raw))
            stream.flush()
            answer = _answer(stream)
    return answer


def _answer(stream: Any) -> Any:
    """One value of Redis's protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    line = stream.readline().decode()
    if not line.endswith("\r\n"):
        raise ConnectionError("it closed the connection")
    kind, rest = line[0], line[1:-2]
    if kind == "-":
        raise ConnectionError(rest)
    if kind in "$*" and int(rest) < 0:
        return None
    if kind == "$":
        return stream.read(int(rest) + 2)[:-2].decode()
    if kind == "*":
        return [_answer(stream) for _ in range(int(rest))]
    return int(rest) if kind == ":" else rest
