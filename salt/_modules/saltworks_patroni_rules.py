"""Patroni's decisions: what its cluster is set to, what becomes of a data folder, how it stands.

Names and meanings: https://patroni.readthedocs.io/en/latest/dynamic_configuration.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__virtualname__ = "patroni_rules"

#: After a killed leader its key lives on for ``ttl`` at most; then a standby finds that the leader
#: does not answer (2 s, Patroni's own), and is promoted (about 1 s): 16 s with etcd's own second.
#: Patroni 3.0 takes any ttl; its rule is loop_wait + 2 * retry_timeout <= ttl: a leader that loses
#: etcd must have demoted itself before another one may have its key. It notices after loop_wait,
#: tries for retry_timeout, and asks the members twice for 2 s (failsafe_mode): 10 s. An etcd that
#: elects takes up to 3 s (formula etcd), which fits in retry_timeout.
TIMERS = {"ttl": 12, "loop_wait": 2, "retry_timeout": 4}

#: PostgreSQL has ended and its machine lives: for how long it is started again before a standby
#: takes over, seconds, by durability. With any other number than 0 one whose disk is full leads for
#: ever: it starts as a standby, for which it needs no room, so that no time runs out; it is
#: promoted, for which it needs some, and ends. But with async a standby may lack what the disk has.
PRIMARY_START_SECONDS = {"async": 10, "sync": 0, "sync-strict": 0}

#: durability → (synchronous_mode, synchronous_mode_strict). See docs/database-cluster.md.
DURABILITY = {"async": (False, False), "sync": (True, False), "sync-strict": (True, True)}

#: PostgreSQL's settings that Patroni gives on the command line, the same for all members: a standby
#: must not have less than its primary. With another value than the running one a restart is wanted.
CARRIED = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction", "max_replication_slots", "wal_level", "track_commit_timestamp",
)  # fmt: skip

#: For reads on standbys: they tell the primary what they still read, and replay waits for a read
#: that is in its way half a second at most.
READING = {"hot_standby_feedback": "on", "max_standby_streaming_delay": "500ms"}

#: A standby that was away for some minutes finds what it missed, though Patroni drops the slot of a
#: member whose key is gone.
KEEPING = {"wal_keep_size": "1GB"}

#: Objects of users have numbers from here (PostgreSQL: FirstNormalObjectId).
FIRST_USER_OID = 16384

#: What initdb makes: template1, template0, postgres (PostgreSQL 15: pg_database.dat).
INITIAL_DATABASES = frozenset({"1", "4", "5"})


def __virtual__() -> str:
    return __virtualname__


def names() -> tuple[str, ...]:
    """:data:`CARRIED`."""
    return CARRIED


def dynamic(
    durability: str, maximum_lag: int, carried: Mapping[str, Any], slots: Sequence[str]
) -> dict[str, Any]:
    """What Patroni's cluster is to be set to, in etcd.

    :param durability: a key of :data:`DURABILITY`.
    :param maximum_lag: bytes that a standby may be behind and yet be promoted.
    :param carried: values of :data:`CARRIED`.
    :param slots: replication slots of others, which Patroni leaves alone.
    :raises ValueError: for a durability that does not exist.
    """
    if durability not in DURABILITY:
        raise ValueError(f"durability {durability!r}: choose one of {', '.join(DURABILITY)}")
    synchronous, strict = DURABILITY[durability]
    return {
        **TIMERS,
        "maximum_lag_on_failover": maximum_lag,
        "primary_start_timeout": PRIMARY_START_SECONDS[durability],
        "synchronous_mode": synchronous,
        "synchronous_mode_strict": strict,
        "failsafe_mode": True,
        "check_timeline": True,
        "ignore_slots": [{"name": name, "type": "physical"} for name in sorted(slots)],
        "postgresql": {
            "use_slots": True,
            "use_pg_rewind": True,
            "parameters": {
                **{key: carried[key] for key in CARRIED if key in carried}, **READING, **KEEPING
            },
        },
    }


def carried(now: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """Values of :data:`CARRIED`: as they are set; before that, as the adopted server runs.

    :param now: Patroni's configuration in etcd, empty before there is one.
    :param running: setting → value of the server of this machine.
    """
    known = (now.get("postgresql") or {}).get("parameters") or {}
    return {key: known.get(key, running.get(key)) for key in CARRIED if {key} & {*known, *running}}


def merged(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """``now`` with all of ``wanted``; what else is set stays, such as a pause."""
    made = dict(now)
    for key, value in wanted.items():
        old = now.get(key)
        deep = isinstance(value, Mapping) and isinstance(old, Mapping)
        made[key] = merged(old, value) if deep else value  # type: ignore[arg-type]
    return made


def differences(now: Mapping[str, Any], then: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Setting, by its dotted name → ``old`` and ``new``, of those that differ."""
    found: dict[str, Any] = {}
    for key in sorted({*now, *then}):
        old, new = now.get(key), then.get(key)
        if isinstance(new, Mapping):
            inner = old if isinstance(old, Mapping) else {}
            found.update(differences(inner, new, f"{head}{key}."))
        elif old != new:
            found[f"{head}{key}"] = {"old": old, "new": new}
    return found


def files_of_users(databases: Mapping[str, Sequence[str]], tablespaces: Sequence[str]) -> list[str]:
    """Why a data folder may hold what somebody put there; empty: it is as initdb made it.

    By its files alone, as its server need not run.

    :param databases: folder below ``base`` → its files.
    :param tablespaces: names below ``pg_tblspc``.
    """
    why = [
        f"base/{number} is a database that initdb did not make"
        for number in sorted(set(databases) - INITIAL_DATABASES - {"pgsql_tmp"})
    ]
    for number in sorted(INITIAL_DATABASES & set(databases)):
        names = {name.split(".")[0].split("_")[0] for name in databases[number]}
        objects = [n for n in names if n.isdigit() and int(n) >= FIRST_USER_OID]
        if objects:
            count = len(objects)
            why.append(f"base/{number} has {count} files of objects that initdb did not make")
    return why + [f"tablespace {name}" for name in sorted(tablespaces)]


def settle(
    initialized: str, own: str, adopts: bool, following: bool, filled: Sequence[str]
) -> tuple[str, str]:
    """What becomes of this machine's data folder as Patroni takes it over.

    :param initialized: system identifier of Patroni's cluster; ``''``: there is none yet.
    :param own: system identifier of the data folder here; ``''``: there is none.
    :param adopts: the cluster is made of what is here.
    :param following: it is a standby.
    :param filled: see :func:`files_of_users`.
    :returns: ``attach``, it stays; ``clear``, it is removed, and a copy is made; ``copy``, there is
        nothing to remove; or ``refuse``; and why.
    """
    if initialized and own == initialized:
        return "attach", "it is of this cluster"
    if initialized and not own:
        return "copy", "there is no data here yet"
    if initialized and not filled:
        return "clear", "it is as initdb made it"
    if initialized:
        return "refuse", (
            f"its system identifier is {own}, the cluster's is {initialized}, and it is not empty: "
            f"{'; '.join(filled)}. If nobody needs it, move it away, and apply this again"
        )
    if not adopts:
        return "refuse", (
            "the cluster does not exist yet, and is not to be made of this machine's server: apply "
            "this to the machine with adopts: true first"
        )
    if not own:
        return "refuse", "there is no server here of which the cluster could be made"
    if following:
        return "refuse", (
            "the cluster does not exist yet, and the server here follows another one: promote it "
            "first, or make the cluster of the other one"
        )
    return "attach", "the cluster is made of it"


def leads(name: str, leader: str, runs: bool, following: bool) -> bool:
    """Whether the server of a member is the one that serves.

    :param name: the member's.
    :param leader: who has the key in etcd; ``''``: nobody.
    :param runs: whether its Patroni does. Where it was stopped already, as by a run that died, the
        key has run out, and it led unless its server is a standby.
    :param following: whether it is.
    """
    return leader == name or (not leader and not runs and not following)


def joined(
    shown: Mapping[str, Any], here: Mapping[str, Any], configured: Mapping[str, Any]
) -> dict[str, Any]:
    """How the cluster stands.

    :param shown: answer of ``GET /cluster``.
    :param here: facts of this machine's server: ``name``, ``slots``, ``senders``.
    :param configured: answer of ``GET /config``.
    :returns: ``leader`` (``''``: none), ``pause``, ``durability``, ``sync`` (standbys that have all
        that was acknowledged), ``members``: name → ``role`` (``leader``, ``sync_standby``,
        ``replica``), ``state``, ``timeline``, ``lag`` (bytes; None: not known), ``lag_seconds``
        (None: not known here), ``pending_restart``, ``may_lead``; ``dcs``, what is wrong with etcd
        as far as it is seen from here; and ``here``.
    """
    seconds = {row["name"]: row.get("replay_lag") for row in here.get("senders", [])}
    members = {
        row["name"]: {
            "role": row["role"],
            "state": row["state"],
            "timeline": row.get("timeline"),
            "lag": lag_of(row),
            "lag_seconds": 0.0 if row["role"] == "leader" else seconds.get(row["name"]),
            "pending_restart": bool(row.get("pending_restart")),
            "may_lead": not row.get("tags", {}).get("nofailover"),
        }
        for row in shown.get("members", [])
    }
    synchronous = bool(configured.get("synchronous_mode"))
    modes = synchronous, synchronous and bool(configured.get("synchronous_mode_strict"))
    names = {value: key for key, value in DURABILITY.items()}
    return {
        "leader": next((name for name, row in members.items() if row["role"] == "leader"), ""),
        "pause": bool(shown.get("pause")),
        "durability": names.get(modes, "async"),
        "sync": sorted(name for name, row in members.items() if row["role"] == "sync_standby"),
        "members": members,
        "dcs": "",
        "here": dict(here),
    }


def by_itself(alone: Mapping[str, Any], here: Mapping[str, Any], wrong: str) -> dict[str, Any]:
    """How a member stands that cannot ask etcd for the others, as :func:`joined` says it.

    :param alone: answer of ``GET /patroni``.
    :param here: facts of this machine's server.
    :param wrong: why etcd could not be asked.
    :returns: ``durability`` is empty: it is not known.
    """
    name = here["name"]
    leads = alone.get("role") in ("master", "primary")
    row = {
        "name": name,
        "role": "leader" if leads else "replica",
        "state": alone.get("state", "unknown"),
        "timeline": alone.get("timeline"),
        "pending_restart": alone.get("pending_restart"),
    }
    shown = {"members": [row], "pause": alone.get("pause")}
    return {**joined(shown, here, {}), "durability": "", "dcs": wrong}


def lag_of(row: Mapping[str, Any]) -> int | None:
    """Bytes that a member of ``GET /cluster`` is behind; None: not known."""
    if row["role"] == "leader":
        return 0
    lag = row.get("lag")
    return int(lag) if isinstance(lag, int) else None


def candidate(status: Mapping[str, Any], wanted: str, bound: int) -> str:
    """The member that a switchover goes to.

    :param status: see :func:`joined`.
    :param wanted: a member's name; ``''``: the one that is the least behind.
    :param bound: bytes that it may be behind.
    :raises ValueError: when nobody can, with the reason.
    """
    leader, members = status["leader"], status["members"]
    if not leader:
        raise ValueError("there is no leader; Patroni elects one by itself (see patroni.status)")
    if status["pause"]:
        raise ValueError("Patroni is paused: call patroni.resume first")
    if wanted == leader:
        raise ValueError(f"{wanted} is the leader already")
    if wanted and wanted not in members:
        raise ValueError(f"{wanted} is no member; members are {', '.join(sorted(members))}")
    only_sync = status["durability"] != "async"
    fit = {
        name: row["lag"]
        for name, row in members.items()
        if name != leader
        and row["may_lead"]
        and row["state"] in ("running", "streaming")
        and row["lag"] is not None
        and row["lag"] <= bound
        and (not only_sync or row["role"] == "sync_standby")
    }
    if wanted and wanted in fit:
        return wanted
    if wanted or not fit:
        rows = "; ".join(
            f"{name}: {row['role']}, {row['state']}, {row['lag']} bytes behind"
            for name, row in sorted(members.items())
            if name != leader
        )
        rule = "a synchronous standby, " if only_sync else "one that may lead, "
        raise ValueError(
            f"{wanted or 'no standby'} can not take over now: it must be {rule}running, and at "
            f"most {bound} bytes behind ({rows or 'there is none'}); see patroni.status"
        )
    nearest: str = min(sorted(fit), key=lambda name: fit[name])
    return nearest
