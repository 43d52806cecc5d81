"""A PostgreSQL database here gets the rows of another machine's, of an older version.

What that takes there is in ``pgpublish``. The tables come by the newer version's pg_dump, their
rows by a subscription, which goes on with what is written meanwhile. Whether the whole of it may
serve is decided in ``pglogical``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgsubscribe"

__salt__: dict[str, Any]

SUBSCRIPTION = PUBLICATION = "saltworks"

#: On the other one, for this one.
SLOT = "saltworks_there"

#: Who is no further behind may take over: a moment's work.
NEAR_BYTES = 16 << 20

#: A worker that has failed so often will not come through by itself.
ERRORS = 3

#: After how long without a row that arrives it is given up, in seconds; before 15 nobody counts
#: the errors.
STALL_SECONDS = 900

#: How often the other machine is asked during a copy whether it is still there, in seconds.
LOOK_SECONDS = 5

Cluster = str | Mapping[str, Any] | None

_THERE = f"""
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'wal_level', current_setting('wal_level'),
  'shut', coalesce(current_setting('saltworks.shut', true), '') <> '',
  'follows', EXISTS (SELECT FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
             WHERE subname = '{SUBSCRIPTION}' AND d.datname = current_database()),
  'publishes', EXISTS (SELECT FROM pg_publication WHERE pubname = '{PUBLICATION}'),
  'slot', EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}'));
"""

_BEHIND = """
SELECT to_json(pg_current_wal_lsn() - confirmed_flush_lsn) FROM pg_replication_slots
WHERE slot_name = ':slot' AND active;
"""

#: Slots of a copy that was cut short hold WAL: its own, and those that filled tables
#: (PostgreSQL: pg_NN_sync_NN_NN, the last of which is the subscriber's system identifier).
_LEFT_SLOTS = """FROM pg_replication_slots
WHERE database = current_database() AND plugin = 'pgoutput'
  AND (slot_name = ':slot' OR slot_name ~ '^pg_[0-9]+_sync_[0-9]+_:system$')"""

_DROP_SLOTS = f"""
SELECT to_json(pg_terminate_backend(active_pid)) {_LEFT_SLOTS} AND active;
SELECT to_json(pg_drop_replication_slot(slot_name)::text) {_LEFT_SLOTS} AND NOT active;
SELECT to_json(count(*)) {_LEFT_SLOTS};
"""

#: Tables that the role of this session may not read.
_HIDDEN = """
SELECT to_json(count(*)) FROM pg_publication_tables
WHERE pubname = 'saltworks'
  AND NOT has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT');
"""

#: All at once, for tables may refer to each other.
_EMPTY = """
SET session_replication_role = replica;
SELECT 'TRUNCATE ' || string_agg(format('%I.%I', n.nspname, c.relname), ', ') || ' CASCADE'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \\gexec
"""


def __virtual__() -> str:
    return __virtualname__


def copy(
    cluster: Cluster,
    database: str,
    owner: Mapping[str, str],
    replication: Mapping[str, str],
    upstream: Mapping[str, Any],
    timeout: float = 86400,
) -> bool:
    """This cluster has all rows of another machine's database, and gets each new one.

    One that has them already is left alone; a copy that was cut short is taken away and begun
    anew. Only done while the other one serves: so the last database is never thrown away.

    :param cluster: see ``pgcluster.locate``; it is ours.
    :param database: its name, there and here.
    :param owner: ``role`` and ``password`` of who is to own it here.
    :param replication: ``role`` and ``password`` of who may follow this one later.
    :param upstream: libpq's parameters of the other one, without a password.
    :param timeout: seconds for the copy.
    :returns: whether a copy was made.
    :raises CommandExecutionError: when the link breaks, or the other one is not to be copied.
    """
    at = __salt__["pgcluster.locate"](cluster)
    far = __salt__["pgserver.far"](at, upstream, dbname=database)
    found = there(at, database, upstream)
    if _is_copy(at, database, found) and _near(far, upstream, SLOT, 30):
        return False
    _emptied(at, database)
    _freed(at, far, upstream, SLOT)
    __salt__["pgserver.provide"](at, database, owner["role"], owner["password"])
    follower = {"password": replication["password"], "replication": True}
    __salt__["pgadmit.give"](at, {replication["role"]: follower})
    try:
        _schema(at, far, database, owner["role"])
        subscribe(at, database, upstream, SLOT, filled=False)
        _fill(at, database, far, upstream, SLOT, timeout)
    except CommandExecutionError as problem:
        raise CommandExecutionError(_failed(upstream, problem)) from None
    return True


def there(cluster: Cluster, database: str, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """How another machine's database stands that rows are to come from.

    :param cluster: whose programs and account are used, see ``pgcluster.locate``.
    :param database: its name.
    :param upstream: libpq's parameters of the other one, without a password.
    :returns: ``version``, ``slot`` (whether that for a copy is there), ``columns`` and others.
    :raises CommandExecutionError: when it does not serve, or nothing is to be had from there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    far = __salt__["pgserver.far"](at, upstream, dbname=database)
    try:
        found: dict[str, Any] = _far(far, _THERE, upstream)[0]
        found["columns"] = __salt__["pglogical.columns"](far)
    except CommandExecutionError as problem:
        raise CommandExecutionError(_failed(upstream, problem)) from None
    wrong = _not_to_be_copied(found)
    if wrong:
        raise CommandExecutionError(
            f"{upstream['host']} {wrong}: nothing is copied from there. See pglogical.status on "
            "both machines"
        )
    return found


def refill(
    cluster: Cluster, database: str, upstream: Mapping[str, Any], slot: str, timeout: float
) -> None:
    """A database here, whose tables are there, gets all rows of another machine's anew.

    :param cluster: see ``pgcluster.locate``; it runs, and is fenced.
    :param database: its name, there and here.
    :param upstream: libpq's parameters of the other one, without a password.
    :param slot: its name on the other one; made anew.
    :param timeout: seconds for the copy.
    :raises CommandExecutionError: when the link breaks, or tables are not the same any more.
    """
    at = __salt__["pgcluster.locate"](cluster)
    far = __salt__["pgserver.far"](at, upstream, dbname=database)
    found = there(at, database, upstream)
    mine = __salt__["pglogical.columns"](__salt__["pgcluster.connection"](at, database))
    hidden = _far(far, _HIDDEN, upstream)[0]
    if mine != found["columns"] or hidden:
        why = (
            f"{hidden} tables there are not to be read by {upstream['user']}"
            if hidden
            else "its tables have other columns by now"
        )
        raise CommandExecutionError(
            f"{database} is not copied again from {upstream['host']}: {why}. It serves there; "
            "without a follower there is no way back. Mend that, or give the old one up: "
            "orch.m3.database.finalize"
        )
    unsubscribe(at, database)
    _freed(at, far, upstream, slot)
    try:
        __salt__["pgserver.sql"](at, _EMPTY, 600, database)
        subscribe(at, database, upstream, slot, filled=False)
        _fill(at, database, far, upstream, slot, timeout)
    except CommandExecutionError as problem:
        so = f"{upstream['host']} serves, but there is no way back yet"
        raise CommandExecutionError(_failed(upstream, problem, so)) from None


def _freed(
    at: Mapping[str, Any], far: Mapping[str, Any], upstream: Mapping[str, Any], slot: str
) -> None:
    """The other one keeps nothing for an earlier copy."""
    system = __salt__["pgserver.sql"](
        at, "SELECT to_json(system_identifier::text) FROM pg_control_system();"
    )[0]
    script = _DROP_SLOTS.replace(":slot", slot).replace(":system", system)
    __salt__["pgcluster.wait_until"](
        lambda: _far(far, script, upstream)[-1] == 0,
        30,
        f"the slots of an earlier copy on {upstream['host']} to go",
        "See pg_replication_slots there",
        0.5,
    )


def _failed(
    upstream: Mapping[str, Any],
    problem: CommandExecutionError,
    so: str = "Nothing changed for anybody",
) -> str:
    return (
        f"copying from {upstream['host']} failed: {problem}. {so}; mend "
        "that (the link, or room on this machine) and run the milestone again: it takes the half "
        "copy away and begins anew"
    )


def subscribe(
    at: Mapping[str, Any], database: str, upstream: Mapping[str, Any], slot: str, filled: bool
) -> None:
    """This database gets what is written to another machine's.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param database: its name, there and here.
    :param upstream: libpq's parameters of the other one, without a password.
    :param slot: its name on the other one.
    :param filled: rows are here already, and the slot, which is there, knows since when not.
    """
    way = __salt__["pgserver.conninfo"](upstream, dbname=database)
    new = "false" if filled else "true"
    # Committed for good at once: only what is flushed is confirmed, and a fence waits for that.
    __salt__["pgserver.sql"](
        at,
        f"CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION '{way}' PUBLICATION {PUBLICATION} WITH "
        f"(slot_name = '{slot}', create_slot = {new}, copy_data = {new}, "
        "synchronous_commit = 'local');",
        # It waits for every transaction that writes there at this moment.
        600,
        database,
    )


def unsubscribe(at: Mapping[str, Any], database: str) -> None:
    """This database gets nothing any more. The other one need not answer; its slot stays.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param database: its name.
    """
    if __salt__["pglogical.status"](at, database).get("slot"):
        __salt__["pgserver.sql"](
            at,
            f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE;\n"
            f"ALTER SUBSCRIPTION {SUBSCRIPTION} SET (slot_name = NONE);\n"
            f"DROP SUBSCRIPTION {SUBSCRIPTION};",
            60,
            database,
        )


def _not_to_be_copied(there: Mapping[str, Any]) -> str:
    """Why rows may not be taken from there, in words; empty: they may."""
    if there["shut"]:
        return "is fenced"
    if there["follows"]:
        return "follows another cluster, perhaps this one"
    if there["wal_level"] != "logical" or not there["publishes"]:
        return f"publishes nothing (wal_level {there['wal_level']})"
    return ""


def _is_copy(at: Mapping[str, Any], database: str, there: Mapping[str, Any]) -> bool:
    if __salt__["pgcluster.condition"](at["data"]) != "ready" or not _has(at, database):
        return False
    here = __salt__["pglogical.status"](at, database)
    whole = here["slot"] == SLOT and here["tables"] and not here["unfilled"]
    mine = __salt__["pglogical.columns"](__salt__["pgcluster.connection"](at, database))
    return bool(whole and there["slot"] and mine == there["columns"])


def _has(at: Mapping[str, Any], database: str) -> bool:
    query = f"SELECT to_json(count(*)) FROM pg_database WHERE datname = '{database}';"
    return bool(__salt__["pgserver.sql"](at, query)[0])


def _emptied(at: Mapping[str, Any], database: str) -> None:
    """What an earlier try has left of the database, and what was written down of it, is gone."""
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        __salt__["pgserver.start"](at, 60)
    if _has(at, database):
        unsubscribe(at, database)
        __salt__["pgadmit.slots"](at, [])
        __salt__["pgserver.sql"](at, f'DROP DATABASE "{database}" WITH (FORCE);', 300)
    __salt__["pgserver.forget"](at, "fenced", "promoted", "identities", "held", "content")


def _schema(at: Mapping[str, Any], far: Mapping[str, Any], database: str, owner: str) -> None:
    """Tables without rows, by the newer version's own programs; all of them the owner's."""
    with __salt__["pgcluster.service"](far) as way:
        text = __salt__["pgcluster.run"](
            [
                f"{at['bindir']}/pg_dump", "--schema-only", "--no-owner", "--no-privileges",
                "--no-publications", "--no-subscriptions", "--no-tablespaces", "--no-password",
                "--dbname=service=saltworks",
            ],
            os_user=at["os_user"], timeout=600, what="reading the schema", environment=way,
        )  # fmt: skip
    __salt__["pgserver.sql"](at, f'SET ROLE "{owner}";\n{text}', 600, database)


def _fill(
    at: Mapping[str, Any],
    database: str,
    far: Mapping[str, Any],
    upstream: Mapping[str, Any],
    slot: str,
    timeout: float,
) -> None:
    """Wait until every table is filled and followed closely; the other one must be there."""
    most, since = 0, time.monotonic()

    def filled() -> bool:
        nonlocal most, since
        with contextlib.suppress(CommandExecutionError):
            __salt__["pgcluster.wait_until"](
                lambda: not __salt__["pglogical.status"](at, database)["unfilled"],
                LOOK_SECONDS,
                "all tables to be filled",
                "",
                1,
            )
            return True
        _far(far, "SELECT to_json(1);", upstream)
        failed = _failures(at)
        if failed >= ERRORS:
            raise CommandExecutionError(
                f"its workers have failed {failed} times; see PostgreSQL's log on this machine"
            )
        # A table that fails is begun anew again and again, and takes no more room by that.
        size = __salt__["pgserver.sql"](
            at, "SELECT to_json(pg_database_size(current_database()));", 20, database
        )[0]
        if size > most + (1 << 20):
            most, since = size, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise CommandExecutionError(
                f"nothing has arrived for {STALL_SECONDS} s; see PostgreSQL's log on this machine"
            )
        return False

    __salt__["pgcluster.wait_until"](filled, timeout, "all tables to be filled", "", 0)
    if not _near(far, upstream, slot, 600):
        raise CommandExecutionError("what is written meanwhile is not caught up with in 600 s")


def _failures(at: Mapping[str, Any]) -> int:
    """How often workers of subscriptions here have failed; before 15 nobody counts."""
    version = "SELECT to_json(current_setting('server_version_num')::int);"
    if __salt__["pgserver.sql"](at, version)[0] < 150000:
        return 0
    failed: int = __salt__["pgserver.sql"](
        at,
        "SELECT to_json(coalesce(sum(apply_error_count + sync_error_count), 0)) "
        "FROM pg_stat_subscription_stats;",
    )[0]
    return failed


def _near(
    far: Mapping[str, Any], upstream: Mapping[str, Any], slot: str, seconds: float
) -> bool:
    """Whether the other one is followed closely, as it sees it; waits for it."""

    def near() -> bool:
        rows = _far(far, _BEHIND.replace(":slot", slot), upstream)
        return bool(rows and rows[0] is not None and rows[0] < NEAR_BYTES)

    with contextlib.suppress(CommandExecutionError):
        return bool(__salt__["pgcluster.wait_until"](near, seconds, "the copy", "", 0.5))
    return False


def _far(far: Mapping[str, Any], script: str, upstream: Mapping[str, Any]) -> list[Any]:
    what = f"asking PostgreSQL on {upstream['host']}"
    rows: list[Any] = __salt__["pgcluster.sql"](far, script, 30, what)
    return rows
