"""A PostgreSQL database moves to a cluster of a newer version: replicated live, switched at once.

    copy            live: see ``pgsubscribe``
    ready_to_leave  live: what is written is followed closely
    ready_to_take   live: every table is filled, and the link stands
    fence           in the window, old one: lets in nobody, and all is confirmed on the other side
    take_over       in the window, new one: has all that, with its sequences, and serves
    unfence         the way back: the fenced one lets people in again
    follow          afterwards: the fenced one subscribes to the new one

When a take-over did not count, for the switch failed after it and was taken back:

    stand_down      at once: who took over is fenced again
    copy_again      afterwards: it may have rows of its own, so it gets all rows anew

The fence is in pg_hba.conf (``pgadmit.shut``), for the old one must be able to write what it
follows: nobody gets in but the superuser at the local socket and the role that replicates. It
takes no restart, and outlives one. What fence and take_over did stands in ``fenced.json`` and
``promoted.json``, see ``pgcontent.folder``.

Not replicated: sequences (set in the window), and changes of the schema (compared in the window).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pglogical"

__salt__: dict[str, Any]

SUBSCRIPTION = PUBLICATION = "saltworks"

#: On the old one for the new one, and after the switch on the new one for the old one.
SLOT, BACK_SLOT = "saltworks_there", "saltworks_back"

#: Who is no further behind may take over: a moment's work.
NEAR_BYTES = 16 << 20

Cluster = str | Mapping[str, Any] | None

#: The schema in one word: what has to be the same on both sides for rows to fit.
_COLUMNS = """
  SELECT to_json(md5(coalesce(string_agg(concat_ws('|', n.nspname, c.relname, a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull), ','
    ORDER BY n.nspname, c.relname, a.attnum), '')))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_';
"""

#: Where each sequence stands: its value, and whether that was given out already. ``last_value`` of
#: pg_sequences is null for one that was set and not used since (ALTER SEQUENCE RESTART, as
#: synapse_port_db leaves them).
_NEXT = """
SELECT format('SELECT json_build_array(%L, last_value, is_called) FROM %I.%I;',
  schemaname || '.' || sequencename, schemaname, sequencename) FROM pg_sequences \\gexec
"""

#: Of one that runs; while it recovers from a crash nothing of it is asked. A quiet server lets
#: hear of itself after half of its wal_sender_timeout, which is 60 s by default.
_HERE = f"""
SELECT json_build_object(
  'slot', (SELECT subslotname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
           WHERE subname = '{SUBSCRIPTION}' AND d.datname = current_database()),
  'tables', (SELECT count(*) FROM pg_subscription_rel),
  'unfilled', (SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'),
  'receiving', (SELECT CASE WHEN last_msg_receipt_time > now() - interval '60 seconds'
                THEN 'streaming' ELSE 'stalled' END FROM pg_stat_subscription
                WHERE subname = '{SUBSCRIPTION}' AND relid IS NULL AND pid IS NOT NULL),
  'publishes', EXISTS (SELECT FROM pg_publication WHERE pubname = '{PUBLICATION}'),
  'followers', (SELECT coalesce(json_agg(json_build_object('slot', slot_name, 'active', active,
       'behind', pg_current_wal_lsn() - confirmed_flush_lsn)), '[]')
     FROM pg_replication_slots
     WHERE database = current_database() AND slot_name IN ('{SLOT}', '{BACK_SLOT}')));
"""


def __virtual__() -> str:
    return __virtualname__


def status(cluster: Cluster, database: str) -> dict[str, Any]:
    """How a cluster stands.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: ``condition`` (see ``pgcluster.condition``), ``fenced``, ``stands`` (see
        ``pgserver.stands``) and, of one that runs, ``slot`` (of the other one, None: it does not
        subscribe), ``tables`` and ``unfilled`` (how many),
        ``receiving`` (``streaming``, ``stalled`` or None), ``publishes`` and
        ``followers`` (slots of ours: ``slot``, ``active``, ``behind`` in bytes).

    CLI Example:

    .. code-block:: bash

        salt legacy pglogical.status '{"port": 5432}' synapse
    """
    at = __salt__["pgcluster.locate"](cluster)
    row = {
        "condition": __salt__["pgcluster.condition"](at["data"]),
        "fenced": __salt__["pgadmit.is_shut"](at),
    }
    row["stands"] = __salt__["pgserver.stands"](
        not row["fenced"],
        __salt__["pgserver.recorded"](at, "fenced"),
        __salt__["pgserver.recorded"](at, "promoted"),
    )
    if row["condition"] == "ready":
        row.update(_sql(at, database, _HERE)[0])
    return row


def columns(connection: Mapping[str, Any]) -> str:
    """A word for a schema: the same where the same tables have the same columns.

    :param connection: as ``pgcluster.sql`` takes it.
    """
    word: str = __salt__["pgcluster.sql"](connection, _COLUMNS, 30, "the columns of all tables")[0]
    return word


def ready_to_leave(cluster: Cluster, database: str) -> dict[str, Any]:
    """Whether a switch may begin, at the end that is left; the last word before people wait.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: see :func:`status`.
    :raises CommandExecutionError: when it may not, with what to do.
    """
    at = __salt__["pgcluster.locate"](cluster)
    row = status(at, database)
    keyless = __salt__["pgpublish.keyless"](at, database) if row["condition"] == "ready" else []
    stands = row["condition"] == "ready" and row["publishes"] and not row["slot"]
    if not stands or row["fenced"] or keyless:
        raise CommandExecutionError(
            f"{database}: cannot be left: {row}, tables without a replica identity: "
            f"{', '.join(str(table) for table, _ in keyless) or 'none'}. Run the milestone again"
        )
    __salt__["pgcluster.wait_until"](
        lambda: _followed_closely(at, database),
        10,
        f"{database} to be followed closely",
        "See PostgreSQL's log on both machines, then run the milestone again",
        0.1,
    )
    _confirmed(at, database, _position(at, database))
    return row


def followed(cluster: Cluster, database: str) -> dict[str, Any]:
    """Whether the other side has all that was written here by now.

    A worker that fails at each start looks alive now and then, and confirms nothing.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: ``followed``, and ``why`` it is not.
    """
    at = __salt__["pgcluster.locate"](cluster)
    try:
        _confirmed(at, database, _position(at, database))
    except CommandExecutionError as problem:
        return {"followed": False, "why": str(problem)}
    return {"followed": True, "why": ""}


def ready_to_take(cluster: Cluster, database: str) -> dict[str, Any]:
    """Whether a switch may begin, at the end that it goes to; see :func:`ready_to_leave`."""
    at = __salt__["pgcluster.locate"](cluster)

    def follows() -> bool:
        row = status(at, database)
        return row.get("receiving") == "streaming" and not row["unfilled"]

    __salt__["pgcluster.wait_until"](
        follows,
        10,
        f"{database} to be filled and followed here",
        lambda: f"It stands so: {status(at, database)}. See PostgreSQL's log on this machine, "
        "then run the milestone again",
        0.1,
    )
    return status(at, database)


def fence(cluster: Cluster, database: str) -> dict[str, Any]:
    """Shut this database, so that it takes no write but by replication from here on.

    All that was written is confirmed on the other side when this returns.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: ``moment`` (its position), ``fingerprint`` and ``sequences`` (see
        ``pgcontent.brief``), ``next`` (sequence to its value and whether that was given out),
        ``columns`` (see :func:`columns`), ``identities`` (tables that have a replica identity
        by us), ``role`` (who replicates), ``changed``.
    :raises CommandExecutionError: when somebody stays connected, or the other side does not
        confirm.
    """
    at = __salt__["pgcluster.locate"](cluster)
    record = __salt__["pgserver.recorded"](at, "fenced")
    if record and __salt__["pgadmit.is_shut"](at):
        _not_followed(at, record)
        return {**record, "changed": False}
    __salt__["pgserver.forget"](at, "fenced")
    role = _follower(at, database)
    _shut(at, database, role)
    position = _position(at, database)
    _confirmed(at, database, position)
    record = {
        **__salt__["pgcontent.brief"](at, database),
        "moment": position,
        "next": {name: [value, used] for name, value, used in _sql(at, database, _NEXT)},
        "columns": columns(__salt__["pgcluster.connection"](at, database)),
        "identities": (__salt__["pgserver.recorded"](at, "identities") or {}).get("tables", []),
        "role": role,
    }
    __salt__["pgserver.turned"](at, "fenced", record)
    return {**record, "changed": True}


def unfence(cluster: Cluster, database: str) -> bool:
    """A fenced cluster, or one whose fence failed, lets in whom it did before.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when it has followed another one since: it holds what was
        written there, and the way back is a switch like the way there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    record = __salt__["pgserver.recorded"](at, "fenced")
    if record and __salt__["pgadmit.is_shut"](at):
        _not_followed(at, record)
    started = __salt__["pgcluster.condition"](at["data"]) == "gone"
    if started:
        __salt__["pgserver.start"](at, 60)
    opened = _opened(at, database)
    __salt__["pgserver.turned_back"](at, "fenced")
    return bool(started or opened)


def take_over(
    cluster: Cluster, database: str, fenced: Mapping[str, Any], followed: bool
) -> dict[str, Any]:
    """This database serves from now on, if it has exactly what the fenced one had.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :param fenced: what :func:`fence` answered on the other machine.
    :param followed: from this moment on keep for the other one what is written, and hold this
        moment's content for a full comparison (see ``pgcontent.measure``).
    :returns: ``moment``, ``compared`` (how many measures), ``changed``.
    :raises CommandExecutionError: when it is not the other one's equal.
    """
    at = __salt__["pgcluster.locate"](cluster)
    known = __salt__["pgserver.recorded"](at, "promoted") or {}
    if known.get("moment") == fenced["moment"]:
        _serving(at, database)
        return {**known, "changed": False}
    here = status(at, database)
    if here["stands"] in ("parted", "loose"):
        __salt__["pgserver.must_follow"](database, here["stands"])
    if not here.get("slot") or here["unfilled"]:
        raise CommandExecutionError(f"{database}: is no whole copy of the fenced one ({here})")
    if columns(__salt__["pgcluster.connection"](at, database)) != fenced["columns"]:
        raise CommandExecutionError(
            f"{database}: its tables have other columns than those of the fenced one. The schema "
            "was changed since the copy; run the milestone again, which copies anew"
        )
    _set_sequences(at, database, fenced["next"])

    def keep() -> None:
        _keep_for_the_other(at, database, fenced["identities"], fenced["role"])

    answer: dict[str, Any] = __salt__["pgserver.succeed"](
        at, database, fenced, keep if followed else None
    )
    _serving(at, database)
    return answer


def stand_down(
    cluster: Cluster,
    database: str,
    upstream: Mapping[str, Any] | None = None,
    discard: bool = False,
    taken_back: bool = False,
) -> str:
    """This database took over, and does not serve after all: it is fenced at once.

    See ``pgstandby.stand_down``; it is to get all rows again then (:func:`copy_again`).

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :param upstream: as there; exactly one of the three.
    :param discard: as there.
    :param taken_back: as there.
    :returns: what was done, in words; empty when there was nothing to do.
    :raises CommandExecutionError: when it is not said why, the other one does not serve, or
        sessions stay here.
    """
    __salt__["pgserver.must_say_why"](upstream, discard, taken_back)
    at = __salt__["pgcluster.locate"](cluster)
    stands = status(at, database)["stands"]
    mine = __salt__["pgserver.recorded"](at, "fenced")
    if not __salt__["pgserver.stands_down"](stands, bool(mine), discard):
        return ""
    if upstream:
        __salt__["pgsubscribe.there"](at, database, upstream)
    if stands == "undone":
        __salt__["pgserver.turned_back"](at, "promoted")
        return f"{database}: did not take over yet, and is fenced as before"
    # First of all: who died behind this finds a database that is not fenced, and fences it.
    if stands == "promoted":
        __salt__["pgserver.turned_back"](at, "promoted", parted=True)
    elif discard:
        __salt__["pgserver.record"](at, "fenced", {**mine, "parted": True})
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        __salt__["pgserver.start"](at, 60)
    # Nobody replicates from here.
    _shut(at, database, "")
    what = "took over, does not serve, and is fenced again" if not discard else "is fenced"
    return (
        f"{database}: {what}. It cannot follow until it is copied again, which orch.m3.database or "
        "its rollback does"
    )


def copy_again(
    cluster: Cluster, database: str, upstream: Mapping[str, Any], timeout: float = 86400
) -> bool:
    """A fenced database that has parted from the one that serves gets all its rows again.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :param upstream: libpq's parameters of the other one, without a password.
    :param timeout: seconds for the copy; one that was cut short is begun anew.
    :returns: whether a copy was made.
    :raises CommandExecutionError: when the link breaks, or the other one is not to be copied.
    """
    at = __salt__["pgcluster.locate"](cluster)
    if status(at, database)["stands"] != "parted":
        return False
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        __salt__["pgserver.start"](at, 60)
    __salt__["pgsubscribe.refill"](at, database, upstream, BACK_SLOT, timeout)
    known = dict(__salt__["pgserver.recorded"](at, "fenced") or {})
    del known["parted"]
    __salt__["pgserver.record"](at, "fenced", {**known, "followed": upstream["host"]})
    return True


def follow(
    cluster: Cluster, database: str, upstream: Mapping[str, Any], seconds: float = 60
) -> bool:
    """A fenced database gets what is written where it went.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :param upstream: libpq's parameters of the other one, without a password.
    :param seconds: bound for its link to stand.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when it is not fenced, or does not get there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    changed = awake(at, database)
    if status(at, database).get("slot") != BACK_SLOT:
        # From here on it is no longer what it was when it was fenced.
        known = __salt__["pgserver.recorded"](at, "fenced") or {}
        __salt__["pgserver.record"](at, "fenced", {**known, "followed": upstream["host"]})
        __salt__["pgsubscribe.subscribe"](at, database, upstream, BACK_SLOT, filled=True)
        changed = True
    __salt__["pgcluster.wait_until"](
        lambda: status(at, database).get("receiving") == "streaming",
        seconds,
        f"the database here to follow {upstream['host']}",
        f"See PostgreSQL's log on this machine. Without it there is no way back: "
        f"{upstream['host']} keeps its WAL for it up to max_slot_wal_keep_size. If that is gone, "
        "have it copied again: stand_down with discard=True (docs/m3-database.md)",
        0.2,
    )
    return changed


def awake(cluster: Cluster, database: str) -> bool:
    """A fenced cluster runs, and is still fenced.

    :returns: whether it was started.
    :raises CommandExecutionError: when it is not fenced.
    """
    at = __salt__["pgcluster.locate"](cluster)
    __salt__["pgserver.must_follow"](database, status(at, database)["stands"])
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        return False
    __salt__["pgserver.start"](at, 60)
    return True


def _followed_closely(at: Mapping[str, Any], database: str) -> bool:
    rows = status(at, database).get("followers", [])
    return bool(rows) and all(row["active"] and row["behind"] < NEAR_BYTES for row in rows)


def _follower(at: Mapping[str, Any], database: str) -> str:
    """The role by which the other one gets what is written here."""
    role = __salt__["pgserver.sql"](
        at,
        "SELECT to_json(usename) FROM pg_stat_replication r JOIN pg_replication_slots s "
        f"ON s.active_pid = r.pid WHERE s.slot_name IN ('{SLOT}', '{BACK_SLOT}');",
    )
    if not role:
        raise CommandExecutionError(
            f"{database}: nobody follows it. See PostgreSQL's log on the other machine"
        )
    return str(role[0])


def _shut(at: Mapping[str, Any], database: str, role: str) -> None:
    """Nobody is connected, and nobody gets in, but a role that replicates."""
    __salt__["pgserver.sql"](at, f"ALTER DATABASE \"{database}\" SET saltworks.shut = 'yes';")
    __salt__["pgadmit.shut"](at, role)
    end = (
        "SELECT to_json(count(pg_terminate_backend(pid))) FROM pg_stat_activity WHERE "
        f"backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = '{database}';"
    )
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgserver.sql"](at, end)[0] == 0,
        5,
        f"the sessions in {database} to end",
        "See pg_stat_activity there",
    )


def _opened(at: Mapping[str, Any], database: str) -> bool:
    __salt__["pgserver.sql"](at, f'ALTER DATABASE "{database}" RESET saltworks.shut;')
    return bool(__salt__["pgadmit.reopen"](at))


def _serving(at: Mapping[str, Any], database: str) -> None:
    """Subscribed no more, and open; in this order, for who died in between."""
    __salt__["pgsubscribe.unsubscribe"](at, database)
    _opened(at, database)


def _position(at: Mapping[str, Any], database: str) -> str:
    """A transaction of this moment that changes nothing: its position in the WAL."""
    message = "SELECT to_json(pg_logical_emit_message(true, 'saltworks', 'now'));"
    return str(_sql(at, database, f"BEGIN; {message} COMMIT;")[0])


def _confirmed(at: Mapping[str, Any], database: str, position: str) -> None:
    query = (
        f"SELECT to_json(coalesce(bool_and(active AND confirmed_flush_lsn >= '{position}'), "
        "false)) FROM pg_replication_slots WHERE database = current_database() "
        f"AND slot_name IN ('{SLOT}', '{BACK_SLOT}');"
    )
    __salt__["pgcluster.wait_until"](
        lambda: _sql(at, database, query)[0],
        8,
        "the other side to confirm all that was written",
        "Its link does not stand: see PostgreSQL's log there, and whether that machine is up",
    )


def _not_followed(at: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    if record.get("followed"):
        raise CommandExecutionError(
            f"{at['data']}: has followed {record['followed']} since it was fenced: it holds what "
            "was written there. Run the milestone again, or its rollback"
        )


def _set_sequences(at: Mapping[str, Any], database: str, values: Mapping[str, Any]) -> None:
    """Each gives out next what the fenced one would have."""
    rows = json.dumps(values).replace("'", "''")
    _sql(
        at,
        database,
        "SELECT to_json(setval(format('%I.%I', schemaname, sequencename)::regclass, "
        "(value->>0)::bigint, (value->>1)::boolean)) FROM pg_sequences "
        f"JOIN json_each('{rows}') ON key = schemaname || '.' || sequencename;",
    )


def _keep_for_the_other(
    at: Mapping[str, Any], database: str, identities: list[str], role: str
) -> None:
    """What is written from this moment on is kept for the fenced one; nobody writes yet.

    :param role: may read everything, should all have to be copied again.
    """
    __salt__["pgpublish.grant"](at, database, role)
    __salt__["pgserver.record"](at, "identities", {"tables": identities})
    __salt__["pgpublish.identify"](at, database)
    _sql(
        at,
        database,
        f"DROP PUBLICATION IF EXISTS {PUBLICATION};\n"
        f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES;\n"
        "SELECT to_json(pg_drop_replication_slot(slot_name)::text) FROM pg_replication_slots "
        f"WHERE slot_name = '{BACK_SLOT}';\n"
        f"SELECT to_json(pg_create_logical_replication_slot('{BACK_SLOT}', 'pgoutput')::text);",
    )


def _sql(at: Mapping[str, Any], database: str, script: str) -> list[Any]:
    rows: list[Any] = __salt__["pgserver.sql"](at, script, 20, database)
    return rows
