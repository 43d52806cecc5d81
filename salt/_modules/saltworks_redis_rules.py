"""A set of Redis machines and its sentinels: who serves, and what is wrong, by what each says.

Fields: https://redis.io/docs/latest/commands/info/ and
https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__virtualname__ = "redis_rules"

#: A replica's last word to its master may be as old as that, seconds; it has one each second.
LAG_SECONDS = 2

#: Sentinel makes an old master that is back a replica after about 10 s (sentinel.c,
#: SENTINEL_PUBLISH_PERIOD * 4).
DEMOTED_SECONDS = 10


def __virtual__() -> str:
    return __virtualname__


def replication(text: Any) -> dict[str, Any]:
    """What ``INFO replication`` says.

    :returns: ``role``; of a replica ``follows`` (an address) and ``link`` (``up`` or ``down``);
        ``offset``; ``replicas``: address → ``online``, ``lag`` in seconds, ``offset``.
    :raises ValueError: it says something else.
    """
    try:
        return _replication(text)
    except (AttributeError, KeyError, ValueError):
        raise ValueError("it says nothing of replication that can be read") from None


def named(answer: Any) -> str:
    """The address that a sentinel names as the master's; ``''``: it knows of none.

    :param answer: of ``SENTINEL GET-MASTER-ADDR-BY-NAME``.
    :raises ValueError: it says something else.
    """
    match answer:
        case None:
            return ""
        case [str(address), _]:
            return address
    raise ValueError("it names no master that can be read")


def _replication(text: str) -> dict[str, Any]:
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    replicas = {}
    for key, value in fields.items():
        if key.startswith("slave") and key[5:].isdigit():
            row = dict(part.split("=", 1) for part in value.split(","))
            replicas[row["ip"]] = {
                "online": row["state"] == "online",
                "lag": int(row["lag"]),
                "offset": int(row["offset"]),
            }
    role = {"master": "master", "slave": "replica"}.get(fields.get("role", ""), "")
    offset = fields.get("master_repl_offset" if role == "master" else "slave_repl_offset", "0")
    made: dict[str, Any] = {"role": role, "offset": int(offset), "replicas": replicas}
    if role == "replica":
        made["follows"] = fields.get("master_host", "")
        made["link"] = fields.get("master_link_status", "down")
    return made


def serving(
    servers: Mapping[str, str],
    said: Mapping[str, Mapping[str, Any]],
    named: Iterable[str],
    sentinels: int,
) -> str:
    """Where Synapse's processes are sent to; ``''``: nowhere. The verdict of formula redis_proxy.

    A Redis serves that says that it is the master, and either most sentinels name it, or all others
    follow it and have just said so.

    :param servers: name → address.
    :param said: name → :func:`replication`, of those that answer.
    :param named: the address that each sentinel that answers names.
    :param sentinels: how many there are.
    """
    votes = list(named)
    chosen = [
        name for name, address in servers.items()
        if sentinels and votes.count(address) >= quorum(sentinels)
    ]
    masters = [name for name, row in said.items() if row["role"] == "master"]
    found = [
        name for name in masters
        if name in chosen or (not chosen and _followed(name, servers, said[name]))
    ]
    return found[0] if len(found) == 1 else ""


def quorum(sentinels: int) -> int:
    """Most of them."""
    return sentinels // 2 + 1


def joined(
    members: Mapping[str, Any],
    said: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, str],
    errors: Mapping[str, str],
) -> dict[str, Any]:
    """How a set stands.

    :param members: ``servers`` and ``sentinels``: name → address.
    :param said: Redis machine → :func:`replication`, of those that answered.
    :param named: sentinel → the address that it names as the master, of those that answered.
    :param errors: ``redis <name>`` or ``sentinel <name>`` → why it did not answer.
    :returns: ``master`` (the one that serves, or ``''``); ``servers``: name → ``up``, and of those
        that are: ``role``, ``follows``, ``link``, ``lag`` (seconds since its word to the master,
        None: it has none), ``behind`` (bytes); ``sentinels``: name → ``up`` and ``names``;
        ``agree``: how many sentinels name the master; ``quorum``; ``wrong``: rows of ``what`` is
        wrong and the ``next`` step; empty: nothing.
    """
    servers, sentinels = members["servers"], members["sentinels"]
    names = {address: name for name, address in servers.items()}
    master = serving(servers, said, named.values(), len(sentinels))
    rows = {name: _server(name, servers, said, master) for name in servers}
    votes = {
        name: {"up": name in named, "names": names.get(named.get(name, ""), named.get(name, ""))}
        for name in sentinels
    }
    shown = {
        "master": master,
        "servers": rows,
        "sentinels": votes,
        "agree": sum(row["names"] == master for row in votes.values()) if master else 0,
        "quorum": quorum(len(sentinels)),
    }
    return {**shown, "wrong": trouble(shown, errors)}


def trouble(shown: Mapping[str, Any], errors: Mapping[str, str]) -> list[dict[str, str]]:
    """What is wrong, and the next step; see :func:`joined`."""
    return [*_of_sentinels(shown, errors), *_of_servers(shown, errors)]


def candidate(shown: Mapping[str, Any]) -> str:
    """Why a planned failover must not be begun now; ``''``: it may.

    :param shown: see :func:`joined`.
    """
    if not shown["master"]:
        return "no Redis serves, so there is nothing to hand over"
    up = sum(row["up"] for row in shown["sentinels"].values())
    if up < shown["quorum"]:
        return f"only {up} sentinels answer, {shown['quorum']} must agree on the new master"
    if not _ready(shown):
        return f"no replica of {shown['master']} is up, linked and near"
    return ""


def _followed(name: str, servers: Mapping[str, str], row: Mapping[str, Any]) -> bool:
    return all(
        _near(row["replicas"].get(address)) for other, address in servers.items() if other != name
    )


def _near(replica: Mapping[str, Any] | None) -> bool:
    return bool(replica and replica["online"] and 0 <= replica["lag"] <= LAG_SECONDS)


def _server(
    name: str,
    servers: Mapping[str, str],
    said: Mapping[str, Mapping[str, Any]],
    master: str,
) -> dict[str, Any]:
    if name not in said:
        return {"up": False}
    row = said[name]
    made: dict[str, Any] = {"up": True, "role": row["role"]}
    if row["role"] != "replica":
        return made
    names = {address: one for one, address in servers.items()}
    seen = said[master]["replicas"].get(servers[name]) if master else None
    made["follows"] = names.get(row["follows"], row["follows"])
    made["link"] = row["link"]
    made["lag"] = seen["lag"] if seen else None
    made["behind"] = max(0, said[master]["offset"] - row["offset"]) if master else None
    return made


def _ready(shown: Mapping[str, Any]) -> list[str]:
    return [
        name for name, row in shown["servers"].items()
        if row["up"] and row["role"] == "replica" and row["follows"] == shown["master"]
        and row["link"] == "up" and row["lag"] is not None and row["lag"] <= LAG_SECONDS
    ]


def _of_sentinels(shown: Mapping[str, Any], errors: Mapping[str, str]) -> list[dict[str, str]]:
    rows = shown["sentinels"]
    if not rows:
        return []
    away = [name for name, row in rows.items() if not row["up"]]
    found = []
    left = len(rows) - len(away)
    if away:
        then = (
            "no failover can happen" if left < shown["quorum"]
            else "with one more away no failover can happen" if left == shown["quorum"]
            else "the others go on"
        )
        found += [
            _row(
                f"the sentinel of {name} does not answer "
                f"({errors.get(f'sentinel {name}', 'not asked')}): {then}",
                f"systemctl status redis-sentinel on {name}, and the firewall before it",
            )
            for name in away
        ]
    named = {row["names"] for row in rows.values() if row["up"]}
    if len(named) > 1:
        found.append(
            _row(
                f"sentinels name different masters: {', '.join(sorted(named))}",
                "a failover takes some seconds; if it stays so, redis_set.status on each "
                "sentinel's machine, and the firewall between them",
            )
        )
    return found


def _of_servers(shown: Mapping[str, Any], errors: Mapping[str, str]) -> list[dict[str, str]]:
    rows = shown["servers"]
    found = []
    if not shown["master"]:
        found.append(
            _row(
                "no Redis serves: Synapse's processes do not hear each other",
                "what stands beside this is why; a failover takes some seconds. Without most of "
                "the sentinels, and without a replica, start those first",
            )
        )
    for name, row in rows.items():
        if not row["up"]:
            found.append(
                _row(
                    f"Redis of {name} does not answer "
                    f"({errors.get(f'redis {name}', 'not asked')})",
                    f"systemctl status redis-server on {name}, and the firewall before it",
                )
            )
        elif row["role"] == "master" and shown["master"] not in ("", name):
            found.append(
                _row(
                    f"{name} says that it is the master, too; nobody is sent to it",
                    f"Sentinel makes it a replica within {DEMOTED_SECONDS} s; if it does not, "
                    "systemctl restart redis-sentinel on one machine after the other",
                )
            )
        elif row["role"] == "replica" and shown["master"] and name not in _ready(shown):
            found.append(_lagging(name, row, shown["master"]))
    return found


def _lagging(name: str, row: Mapping[str, Any], master: str) -> dict[str, str]:
    if row["follows"] != master:
        what = f"{name} follows {row['follows']}, and {master} is the master"
    elif row["link"] != "up" or row["lag"] is None:
        what = f"{name} has no link to {master}: it cannot take over"
    else:
        what = f"{name} has said nothing to {master} for {row['lag']} s"
    return _row(what, f"journalctl -u redis-server on {name}, and the firewall between the two")


def _row(what: str, step: str) -> dict[str, str]:
    return {"what": what, "next": step}
