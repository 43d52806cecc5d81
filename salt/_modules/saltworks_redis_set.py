"""The set of Redis machines that this machine's Sentinel watches, asked and told.

Everybody is asked at once, by TLS and with Sentinel's own accounts; names in certificates are
verified.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_set"

__salt__: dict[str, Any]

#: Of formula sentinel.
CONFIG_DIR = "/etc/redis-sentinel"

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
    for name in members["servers"]:
        asks[f"redis {name}"] = _ask(own, "servers", name, ["INFO", "replication"])
    for name in members["sentinels"]:
        words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", members["set"]]
        asks[f"sentinel {name}"] = _ask(own, "sentinels", name, words)
    found: dict[str, dict[str, Any]] = {"redis": {}, "sentinel": {}}
    errors = {}
    reads = {"redis": "redis_rules.replication", "sentinel": "redis_rules.named"}
    for key, row in __salt__["redis_bus.answers"](own["authority"], asks).items():
        kind, _, name = key.partition(" ")
        if "error" in row:
            errors[key] = row["error"]
            continue
        try:
            found[kind][name] = __salt__[reads[kind]](row["answer"])
        except ValueError as error:
            errors[key] = str(error)
    said, named = found["redis"], found["sentinel"]
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
    ask = _ask(own, "sentinels", name, ["SENTINEL", "FAILOVER", members["set"]])
    answer = __salt__["redis_bus.answers"](own["authority"], {name: ask})[name]
    if "error" in answer:
        raise CommandExecutionError(
            f"the sentinel of {name} does not fail over: {answer['error']}. A failover that is "
            "under way, or was just now, is waited for; see redis_set.status"
        )
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
        "servers": {
            "port": members["server_port"],
            "user": words[f"sentinel auth-user {of_set}"],
            "password": words[f"sentinel auth-pass {of_set}"],
        },
        "sentinels": {
            "port": members["port"],
            "user": words["sentinel sentinel-user"],
            "password": words["sentinel sentinel-pass"],
        },
    }


def _ask(own: Mapping[str, Any], kind: str, name: str, words: list[str]) -> dict[str, Any]:
    """For ``redis_bus.answers``.

    :param kind: ``servers`` or ``sentinels``.
    """
    return {"name": name, "address": own["members"][kind][name], **own[kind], "words": words}
