"""A PostgreSQL server of this machine: started, stopped, set, filled for the first time, retired.

What a standby (``pgstandby``) and logical replication (``pglogical``) have in common. What either
did is written down, see :func:`record`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgserver"

__salt__: dict[str, Any]

#: A link that carries nothing is noticed within about 20 s, on either side.
KEEPALIVE = {
    "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20000, "connect_timeout": 10,
}  # fmt: skip

#: What a switch writes down of a cluster: one of these, or the other.
OTHER = {"fenced": "promoted", "promoted": "fenced"}

#: Of WAL a slot may hold that much in any case.
LEAST_WAL_MB = 64

#: What Debian's pg_ctlcluster and systemd's generator read in start.conf.
RETIRED = "# Managed by Salt (formula postgres).\ndisabled\n"

Cluster = str | Mapping[str, Any] | None


def __virtual__() -> str:
    return __virtualname__


def provide(cluster: Cluster, database: str, owner: str, password: str) -> list[str]:
    """This cluster runs as configured, and has an empty database as Synapse wants it.

    :param cluster: see ``pgcluster.locate``; nobody uses it yet.
    :param database: its name; one that is there stays.
    :param owner: the role that owns it.
    :param password: of the role.
    :returns: what was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    found = f"SELECT to_json(count(*)) FROM pg_database WHERE datname = '{database}';"
    running = __salt__["pgcluster.condition"](at["data"]) != "gone"
    new = not running or not sql(at, found)[0]
    if new:
        # Debian started it with settings of its own.
        stop(at, "fast", 60)
        start(at, 60)
    role = {owner: {"password": password, "made": True}}
    changed = [f"role {name}" for name in __salt__["pgadmit.give"](at, role)]
    if new and not sql(at, found)[0]:
        sql(
            at,
            f'CREATE DATABASE "{database}" OWNER "{owner}" TEMPLATE template0 ENCODING '
            "'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';",
        )
        changed.append(f"database {database}")
    return changed


def retire(cluster: Cluster, test: bool = False) -> list[str]:
    """A cluster of Debian's runs no more, and whoever starts it is refused; its data stays.

    :param cluster: see ``pgcluster.locate``; one that is not there is retired.
    :param test: only say what would be done.
    :returns: what was changed.
    """
    try:
        at = __salt__["pgcluster.locate"](cluster)
    except CommandExecutionError:
        return []
    path = f"{at['config']}/start.conf"
    changed = []
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        changed.append(at["data"])
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        if file.read() != RETIRED:
            changed.append(path)
    # It starts whatever else is a cluster here, and counts as running by itself.
    alone = not [row for row in __salt__["pgcluster.others"](at) if row["status"] != "down"]
    if alone and __salt__["service.status"]("postgresql"):
        changed.append("postgresql.service")
    if changed and not test:
        stop(at, "fast", 60)
        write(at, path, RETIRED)
        if alone:
            __salt__["pgcluster.run"](["systemctl", "disable", "--now", "postgresql"], timeout=60)
    return changed


def start(at: Mapping[str, Any], seconds: float) -> None:
    """The server runs and takes connections.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param seconds: the bound.
    :raises CommandExecutionError: when it does not.
    """
    what = f"starting PostgreSQL in {at['data']}"
    if "unit" in at:
        # A unit that was stopped from outside systemd counts as failed; one that is not loaded, as
        # after Patroni, has nothing to be reset, and systemctl says that it failed.
        with contextlib.suppress(CommandExecutionError):
            __salt__["pgcluster.run"](["systemctl", "reset-failed", at["unit"]], what=what)
        __salt__["pgcluster.run"](["systemctl", "start", at["unit"]], timeout=seconds, what=what)
    else:
        log, config = f"{at['socket']}/log", f"-c config_file={at['config']}/postgresql.conf"
        __salt__["pgcluster.control"](at, ["-l", log, "-o", config, "-w", "start"], seconds, what)
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgcluster.condition"](at["data"]) in ("ready", "standby"),
        seconds,
        f"PostgreSQL in {at['data']} to take connections",
        "See its log.",
    )


def stop(at: Mapping[str, Any], mode: str, seconds: float) -> None:
    """The server does not run; until it is started again.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param mode: ``fast`` or ``immediate``, as pg_ctl has them.
    :param seconds: the bound.
    :raises CommandExecutionError: when it still runs.
    """
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        return
    # Not by systemd, which would wait for an hour: what it is told must come true or fail.
    how = ["-m", mode, "-w", "-t", str(int(seconds)), "stop"]
    what = f"stopping PostgreSQL in {at['data']}"
    __salt__["pgcluster.control"](at, how, seconds + 5, what)
    if "unit" in at:
        __salt__["pgcluster.wait_until"](
            lambda: not __salt__["service.status"](at["unit"]),
            10,
            f"{at['unit']} to have ended",
            f"See systemctl status {at['unit']}.",
        )


def configure(at: Mapping[str, Any], **settings: str | None) -> None:
    """ALTER SYSTEM SET, or RESET where the value is None; and reload."""
    lines = [
        f"ALTER SYSTEM RESET {key};" if value is None else f"ALTER SYSTEM SET {key} = '{value}';"
        for key, value in settings.items()
    ]
    sql(at, "\n".join([*lines, "SELECT to_json(pg_reload_conf());"]))


def sql(
    at: Mapping[str, Any], script: str, timeout: float = 20, database: str = "postgres"
) -> list[Any]:
    """``pgcluster.sql`` as the superuser of a cluster of this machine."""
    there = __salt__["pgcluster.connection"](at, database)
    rows: list[Any] = __salt__["pgcluster.sql"](there, script, timeout, script.strip()[:60])
    return rows


def far(at: Mapping[str, Any], upstream: Mapping[str, Any], **more: str) -> dict[str, Any]:
    """The connection to another machine's cluster, as ``pgcluster.sql`` takes it.

    :param at: the cluster of this machine whose programs and account are used.
    :param upstream: libpq's parameters of the other one, without a password.
    :param more: further ones, such as ``dbname``.
    """
    params = {**upstream, **KEEPALIVE, **more}
    return {"bindir": at["bindir"], "os_user": at["os_user"], "params": params}


def conninfo(upstream: Mapping[str, Any], **more: str) -> str:
    """How a server of ours reaches another one: libpq's parameters in one line.

    :param upstream: libpq's parameters of the other one, without a password.
    :param more: further ones, such as ``dbname``.
    """
    rows = {**upstream, **more, "application_name": "saltworks", **KEEPALIVE}
    for key, value in rows.items():
        if not re.fullmatch(r"[A-Za-z0-9_./:-]+", str(value)):
            what = f"{key}={value!r} cannot stand in a line of connection parameters"
            raise CommandExecutionError(what)
    return " ".join(f"{key}={value}" for key, value in rows.items())


def write(at: Mapping[str, Any], path: str, text: str) -> None:
    """A file of the cluster's own, as its account, synced: the fence must outlive a power cut."""
    __salt__["pgcluster.run"](
        ["sh", "-c", 'umask 077; cat > "$0" && sync "$0" "$(dirname "$0")"', path],
        os_user=at["os_user"],
        stdin=text,
        what=path,
    )


def record(at: Mapping[str, Any], name: str, value: Mapping[str, Any]) -> None:
    """Write down what was done; see ``pgcontent.folder``."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    __salt__["pgcluster.write_json"](
        f"{__salt__['pgcontent.made_folder'](at)}/{name}.json", {**value, "when": when}
    )


def recorded(at: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What :func:`record` wrote down, None without it."""
    path = f"{__salt__['pgcontent.folder'](at)}/{name}.json"
    value: dict[str, Any] | None = __salt__["pgcluster.read_json"](path)
    return value


def succeed(
    at: Mapping[str, Any],
    database: str,
    fenced: Mapping[str, Any],
    keep: Callable[[], Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """The end of a promotion, by files or by rows: it is the fenced one's equal; written down.

    :param at: a complete cluster, see ``pgcluster.locate``: nobody writes there yet.
    :param database: its name.
    :param fenced: what the fence answered.
    :param keep: has to be done for the other one to follow from this moment on; the moment's
        content is held then (see ``pgcontent.measure``). None: nobody will follow.
    :param more: for the record.
    :returns: ``moment``, ``compared`` (how many measures), ``changed`` and ``more``.
    :raises CommandExecutionError: when it is not the other one's equal.
    """
    found = __salt__["pgcontent.brief"](at, database, only=list(fenced["fingerprint"]))
    wrong = __salt__["pgcontent.differences"](fenced, found)
    if wrong:
        raise CommandExecutionError(f"{database}: is not what it was: {'; '.join(wrong)}")
    if keep:
        keep()
        __salt__["pgcontent.hold"](at, database, fenced["moment"])
    compared = len(found["fingerprint"]) + len(found["sequences"])
    record = {"moment": fenced["moment"], **more, "compared": compared}
    turned(at, "promoted", record)
    return {**record, "changed": True}


def turned(at: Mapping[str, Any], name: str, value: Mapping[str, Any]) -> None:
    """Write down that a cluster was ``fenced``, or ``promoted``, in place of the other.

    The other is kept in it: a switch that fails is taken back by :func:`turned_back`.
    """
    other = OTHER[name]
    before = recorded(at, other) or (recorded(at, name) or {}).get("before") or {}
    kept = {key: row for key, row in before.items() if key != "before"}
    record(at, name, {**value, "before": kept})
    forget(at, other)


def turned_back(at: Mapping[str, Any], name: str, **more: Any) -> None:
    """What is written down is what was before :func:`turned`.

    :param more: what has to be added to that.
    """
    known = recorded(at, name)
    if known is None:
        return
    before = {**known.get("before", {}), **more}
    if before:
        record(at, OTHER[name], before)
    forget(at, name)


def stands(
    takes: bool, fenced: Mapping[str, Any] | None, promoted: Mapping[str, Any] | None
) -> str:
    """What has become of a cluster in the switches so far.

    :param takes: it takes writes, or would when it is started.
    :param fenced: what is written down of its fence.
    :param promoted: what is written down of its promotion.
    :returns: ``open``, never fenced, or by hand no more; ``fenced``, as it was at the switch;
        ``follower``, fenced, and has followed the other one; ``promoted``, and serves, unless the
        other one does; ``undone``, a promotion that had no effect yet; ``parted``, fenced after a
        promotion that did not count: it cannot follow, but be copied again; ``loose``, the same,
        but not fenced (yet).
    """
    if (fenced or {}).get("parted"):
        return "loose" if takes else "parted"
    if promoted:
        return "promoted" if takes else "undone"
    if takes:
        return "open"
    return "follower" if (fenced or {}).get("followed") else "fenced"


def stands_down(state: str, known: bool, discard: bool) -> bool:
    """Whether one is to be fenced whose promotion did not count, or that is to be thrown away.

    :param state: what :func:`stands` says of it.
    :param known: a fence of ours is written down.
    :param discard: an operator says to throw it away. Not what is promoted: that is also what
        serves by a rollback that went well. Nor what was never fenced by us.
    """
    if discard:
        return known and state in ("open", "follower")
    return state in ("promoted", "undone", "loose")


def must_say_why(upstream: Mapping[str, Any] | None, discard: bool, taken_back: bool) -> None:
    """Refuse to fence one that may serve, unless exactly one reason is given.

    :param upstream: see ``pgstandby.stand_down``, as the others.
    """
    if [bool(upstream), bool(discard), bool(taken_back)].count(True) != 1:
        raise CommandExecutionError(
            "nothing was done: what is stood down is stopped or shut, and may be what serves. Say "
            "why, by exactly one of: upstream={...}, the database that serves, which is asked; "
            "discard=True, by hand, to throw away what was written to it since it was left "
            "(docs/m3-database.md); taken_back=True, not by hand, for the switch that has just "
            "been taken back"
        )


def must_follow(what: str, state: str) -> None:
    """Refuse what is only for one that is fenced, and can follow.

    :param what: the cluster or the database, for the error.
    :param state: what :func:`stands` says of it.
    """
    if state in ("fenced", "follower"):
        return
    do = "run orch.m3.database or its rollback, which"
    why = {
        "open": "is not fenced, and we did not take the fence away: it may have writes that nobody "
        "sees. Look at them; to throw them away: stand_down with discard=True (docs/m3-database.md)"
        f", then {do} copies it again",
        "parted": f"has parted from the one that serves, and cannot follow: {do} copies it again",
    }
    other = f"was promoted, and the other one serves: {do} fences it and copies it again"
    raise CommandExecutionError(f"{what}: {why.get(state, other)}")


def wal_bound(setting: int, others: int, free: int) -> int | None:
    """How much WAL slots may hold on a cluster while it is copied, in MB.

    :param setting: ``max_slot_wal_keep_size`` as it is, in MB; -1: no bound.
    :param others: how many slots are not ours: they must not lose by us what they wait for.
    :param free: bytes free where WAL is.
    :returns: half of what is free; None: it stays as it is.
    """
    return None if setting != -1 or others else max(free // 2 >> 20, LEAST_WAL_MB)


def bound(cluster: Cluster, wanted: bool, test: bool = False) -> list[str]:
    """WAL that is held for a copy of ours does not fill the disk.

    :param cluster: see ``pgcluster.locate``; a primary.
    :param wanted: else it is as it was before.
    :param test: only say what would be done.
    :returns: what was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    name, size = "max_slot_wal_keep_size", None
    if wanted:
        # The setting itself says whether it is bound: what is written down may be of a run that
        # died before it set it.
        setting, others = sql(
            at,
            f"SELECT to_json(setting::int) FROM pg_settings WHERE name = '{name}';\n"
            "SELECT to_json(count(*)) FROM pg_replication_slots "
            "WHERE slot_name !~ '^(saltworks|pg_[0-9]+_sync_)';",
        )
        free = __salt__["pgcluster.free_bytes"](os.path.realpath(f"{at['data']}/pg_wal"))
        size = wal_bound(setting, others, free)
        if size is None:
            return []
    elif not recorded(at, "bounded"):
        return []
    if not test:
        if size:
            record(at, "bounded", {name: f"{size}MB"})
        configure(at, **{name: f"{size}MB" if size else None})
        if not size:
            forget(at, "bounded")
    return [name]


def forget(at: Mapping[str, Any], *names: str) -> None:
    """Nothing is written down under these names."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{__salt__['pgcontent.folder'](at)}/{name}.json")
