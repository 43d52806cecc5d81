"""What speaks against moving the database, by the way that it would go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...clustermap import Map
from ...errors import Problem
from ...plan import CONFIG_DIR, Placement, dsn_host
from ..model import Ask
from . import sqlite
from .common import (
    CLUSTER,
    DATA_DIR,
    DEBIAN,
    MAJOR,
    OLDEST,
    PORT,
    database,
    found,
    is_older,
    is_sqlite,
    is_there,
    machine_of,
    major,
)

#: Unlogged on purpose: Synapse's workers take locks there, and each start begins anew.
LOCKS = ("worker_locks", "worker_read_write_locks", "worker_read_write_locks_mode")

Row = tuple[bool, str, str]


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if placement.database or placement.moving:
        # A window that is open is ended by the switch, which looks for itself.
        return {}
    if not (is_there(cmap, placement) or is_sqlite(cmap)):
        return {}
    machine, legacy, at = machine_of(cmap), cmap["legacy"]["minion"], {"cluster": found(cmap)}
    look = {"paths": [DATA_DIR], "ports": [PORT], "trees": [f"{DATA_DIR}/{CLUSTER}"]}
    config = {"config": f"{CONFIG_DIR}/homeserver.yaml"}
    rows = {
        "found": Ask(placement.synapse, "synapse_db.facts", config)
        if is_sqlite(cmap)
        else Ask(legacy, "pgadmit.survey", at),
        "machine": Ask(machine, "machine_facts.read", look),
        "locales": Ask(machine, "locale.list_avail"),
    }
    if is_older(cmap):
        name, user = database(cmap)
        rows["inside"] = Ask(legacy, "pgpublish.survey", {**at, "database": name, "user": user})
    return rows


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    if placement.database or placement.moving:
        return []
    if not is_sqlite(cmap) and not is_there(cmap, placement):
        host = dsn_host(cmap["synapse"]["database"])
        what = f"PostgreSQL is found on {host}, not on the legacy machine itself"
        do = "only a cluster of the legacy machine is moved; leave M3.database out"
        return [Problem("cluster.synapse.database.host", what, do)]
    asked = questions(cmap, placement)
    failed = {key: row["error"] for key, row in told.items() if "error" in row}
    if failed or set(asked) - set(told):
        # A machine that does not answer at all is said elsewhere.
        look = "see pg_lsclusters and the salt-minion's log there"
        return [Problem(asked[key].machine, str(error), look) for key, error in failed.items()]
    row, facts, machine = told["found"], told["machine"], asked["machine"].machine
    if is_sqlite(cmap):
        # Rows and indexes take more room there than in SQLite's file.
        needed = room_for(2 * int(row["bytes"]))
        return sqlite.problems(asked["found"].machine, row) + _of_machine(
            machine, facts, needed, []
        )
    missing = [] if is_older(cmap) else _missing_locales(row, told["locales"])
    wrong = list(_of_version(cmap, int(row["version"]) // 10000))
    wrong += _of_cluster(cmap, row)
    wrong += _of_rows(cmap, row, told["inside"]) if is_older(cmap) else _of_files(cmap, row)
    place = f"{cmap['legacy']['minion']}: PostgreSQL"
    return [Problem(place, what, do) for bad, what, do in wrong if bad] + _of_machine(
        machine, facts, room_for(int(row["bytes"])), missing
    )


def room_for(size: int) -> int:
    """Bytes that a copy of a cluster of ``size`` bytes takes, with the WAL written meanwhile."""
    return size * 12 // 10 + (1 << 30)


def _missing_locales(row: Mapping[str, Any], available: list[str]) -> list[str]:
    used = {base[kind] for base in row["databases"].values() for kind in ("collate", "ctype")}
    known = {_plain(name) for name in available} | {"c", "posix"}
    return sorted(name for name in used if _plain(name) not in known)


def _plain(locale: str) -> str:
    """A locale's name as both ``locale -a`` and PostgreSQL would have it."""
    return locale.lower().replace("-", "")


def _of_version(cmap: Map, seen: int) -> Iterator[Row]:
    """The version decides the way, so the map has to be right about it."""
    if seen > MAJOR or seen < OLDEST:
        known = f"the new machine has {MAJOR}, to which {OLDEST} and newer can move"
        newer = "leave M3.database out"
        older = f"bring it to {OLDEST} or newer first (pg_upgradecluster)"
        yield True, f"is version {seen}; {known}", newer if seen > MAJOR else older
    elif seen != major(cmap):
        stated = f"says {major(cmap)}" if "version" in cmap["synapse"]["database"] else "says none"
        what = f"is version {seen}, the map {stated}"
        yield True, what, f"write synapse.database.version: {seen} into the map"


def _of_cluster(cmap: Map, row: Mapping[str, Any]) -> Iterator[Row]:
    """What speaks against leaving the cluster found, whichever way."""
    name = database(cmap)[0]
    mine = row["databases"].get(name)
    others = sorted(set(row["databases"]) - {name, "postgres"})
    fate = "which would not move along" if is_older(cmap) else "which would move along"
    yield mine is None, f"has no database {name}", "correct synapse.database.name in the map"
    yield (
        mine is not None and {mine["collate"], mine["ctype"]} != {"C"},
        f"the database {name} has the locale {mine and mine['collate']}, Synapse wants C",
        "dump it, and restore it into a database with LC_COLLATE and LC_CTYPE C",
    )
    yield (
        bool(others),
        f"holds other databases, {fate}: {', '.join(others)}",
        "move them to another cluster (pg_createcluster, pg_dump), or drop them; of M1's "
        "rollbacks: orch.m1.finalize",
    )
    yield row["recovery"], "is a standby", "name the primary's machine in the map"
    yield not row["ssl"], "has ssl off", "ssl = on with certificate and key, then reload"
    yield (
        row["wal_level"] == "minimal",
        "has wal_level minimal",
        "set it to replica and restart PostgreSQL",
    )
    yield (
        bool(row["synchronous"]),
        f"has synchronous_standby_names {row['synchronous']!r}: commits could wait for the "
        "new machine",
        "name the standbys that it means",
    )
    # By files one for the copy and one for its WAL; by rows the apply worker and two that fill
    # tables (max_sync_workers_per_subscription), each with a slot.
    senders, slots = (3, 3) if is_older(cmap) else (2, 1)
    yield (
        row["max_wal_senders"] - row["senders"] < senders,
        f"has max_wal_senders {row['max_wal_senders']}, {row['senders']} in use; "
        f"{senders} needed",
        "raise it and restart PostgreSQL",
    )
    free = row["max_slots"] - row["slots"]
    yield (
        free < slots,
        f"has max_replication_slots {row['max_slots']}, {row['slots']} in use; {slots} needed",
        "raise it and restart PostgreSQL, or drop a slot that nobody uses",
    )


def _of_files(cmap: Map, row: Mapping[str, Any]) -> Iterator[Row]:
    """What speaks against copying the cluster found file by file."""
    yield (
        bool(row["tablespaces"]),
        f"has tablespaces: {', '.join(row['tablespaces'].values())}",
        f"ALTER DATABASE {database(cmap)[0]} SET TABLESPACE pg_default, and drop them",
    )
    yield (
        bool(row["extensions"]),
        f"loads libraries that the new machine has not: {', '.join(row['extensions'])}",
        "take them out of shared_preload_libraries and restart PostgreSQL",
    )


def _of_rows(cmap: Map, row: Mapping[str, Any], inside: Mapping[str, Any]) -> Iterator[Row]:
    """What logical replication would leave behind, or stumble over."""
    name, user = database(cmap)
    mine = row["databases"].get(name) or {}
    unlogged = [table for table in inside["unlogged"] if table.rpartition(".")[2] not in LOCKS]
    workers = inside["max_logical_replication_workers"]
    yield (
        mine.get("encoding", "UTF8") != "UTF8",
        f"the database {name} has the encoding {mine.get('encoding')}, Synapse wants UTF8",
        "dump it, and restore it into a database with ENCODING 'UTF8'",
    )
    yield (
        not inside["owner"],
        f"has no role {user}, which owns Synapse's tables",
        "correct synapse.database.user in the map",
    )
    yield (
        inside["superuser"],
        f"the role {user} is a superuser: it could not be kept out of the old cluster",
        f"ALTER ROLE {user} NOSUPERUSER, once it owns the database {name} and its tables",
    )
    yield (
        workers < 1,
        f"has max_logical_replication_workers {workers}, 1 needed for the way back",
        "raise it and restart PostgreSQL",
    )
    yield (
        inside["max_worker_processes"] < 3,
        f"has max_worker_processes {inside['max_worker_processes']}, 3 needed for the way back",
        "raise it and restart PostgreSQL",
    )
    yield (
        bool(inside["extensions"]),
        f"the database {name} has extensions: {', '.join(inside['extensions'])}",
        "DROP EXTENSION, if nothing of Synapse's depends on it",
    )
    yield (
        bool(inside["large_objects"]),
        f"the database {name} has {inside['large_objects']} large objects, which would be lost",
        "remove them (vacuumlo, or lo_unlink)",
    )
    yield (
        bool(unlogged),
        f"these tables are unlogged and would arrive empty: {', '.join(unlogged)}",
        "ALTER TABLE ... SET LOGGED, or drop them",
    )
    yield (
        bool(inside["odd"]),
        f"these relations are no plain tables and would arrive empty: {', '.join(inside['odd'])}",
        "drop them (Synapse has no views with data of their own, and no foreign tables)",
    )
    yield (
        bool(inside["unequal"]),
        "these columns cannot be compared, in tables without a key: "
        + ", ".join(inside["unequal"]),
        "give the table a primary key",
    )
    yield (
        bool(inside["subscriptions"]),
        f"the database {name} subscribes to another one: {', '.join(inside['subscriptions'])}",
        "DROP SUBSCRIPTION: it would go on writing there",
    )
    yield (
        bool(inside["prepared"]),
        f"has prepared transactions: {', '.join(inside['prepared'])}",
        "COMMIT PREPARED or ROLLBACK PREPARED",
    )
    yield (
        bool(inside["pending"]),
        f"background updates still run: {', '.join(inside['pending'][:5])}; they change the "
        "schema, which is not replicated",
        "wait for their end, then again",
    )


def _of_machine(
    machine: str, facts: Mapping[str, Any], needed: int, missing: list[str]
) -> list[Problem]:
    """What speaks against the new machine.

    :param needed: bytes.
    :param missing: locales.
    """
    room = facts["free"][DATA_DIR]["bytes"] + facts["trees"][f"{DATA_DIR}/{CLUSTER}"]["bytes"]
    strangers = [
        f"{row['program']} ({row['unit'] or 'no unit'})"
        for row in facts["listeners"]
        if row["unit"] != f"postgresql@{CLUSTER.replace('/', '-')}.service"
    ]
    system = f"{facts['os']['name']} {facts['os']['release']}"
    rows = [
        (
            (facts["os"]["family"], facts["os"]["release"].partition(".")[0]) != ("Debian", DEBIAN),
            f"runs {system}, whose PostgreSQL is not {MAJOR}",
            f"install Debian {DEBIAN} there",
        ),
        (
            room < needed,
            f"{room >> 20} MiB free for {DATA_DIR}, {needed >> 20} MiB needed",
            "make room, or mount a larger file system there",
        ),
        (
            bool(missing),
            f"has not the locales of the cluster's databases: {', '.join(missing)}",
            "add them to /etc/locale.gen and run locale-gen",
        ),
        (
            bool(strangers),
            f"port {PORT} is taken by {', '.join(sorted(set(strangers)))}",
            "stop that service, or give it another port",
        ),
    ]
    return [Problem(machine, what, do) for wrong, what, do in rows if wrong]
