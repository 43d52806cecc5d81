"""A fingerprint of Synapse's database: proof of content that costs no scan.

Takes a connection (see ``pgcluster`` and ``synapse_db.connection``), of PostgreSQL or
SQLite, and answers counts of the tables that clients' data live in, digests of the small
ones whose content matters, and the end of the event stream byte by byte.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_fingerprint"

__salt__: dict[str, Any]

#: Tables that hold what clients put there; each is counted.
COUNTED = (
    "users", "access_tokens", "devices", "profiles", "user_threepids", "user_filters",
    "rooms", "room_aliases", "room_memberships", "current_state_events", "state_events",
    "events", "event_json", "event_relations", "redactions", "event_reports",
    "receipts_linearized", "receipts_graph", "account_data", "room_account_data", "room_tags",
    "push_rules", "pushers", "ignored_users", "device_inbox", "e2e_device_keys_json",
    "e2e_one_time_keys_json", "e2e_fallback_keys_json", "e2e_cross_signing_keys",
    "e2e_cross_signing_signatures", "e2e_room_keys", "e2e_room_keys_versions",
    "local_media_repository", "local_media_repository_thumbnails", "remote_media_cache",
    "registration_tokens", "blocked_rooms",
)  # fmt: skip

#: Small tables whose content matters as much as their count: (key, columns). A count
#: alone does not see an old password or a lifted quarantine come back.
DIGESTED = {
    "users": ("name", ("name", "password_hash", "admin", "deactivated")),
    "access_tokens": ("id", ("id", "user_id", "device_id")),
    "local_media_repository": ("media_id", ("media_id", "media_length", "quarantined_by")),
}

#: Rows at the end of the event stream that are compared byte by byte.
TAIL = 1000

#: What releases up to 1.163 delete or rewrite on purpose while they migrate (schema
#: deltas and background updates such as remove_dead_devices_from_device_inbox,
#: delete_account_data_for_deactivated_users, delete_e2e_backup_keys_for_deactivated_users,
#: delete_old_otks, remove_stale_pushers, unstable private read receipts).
CHANGED_BY_MIGRATION = frozenset(
    {
        "device_inbox", "account_data", "room_account_data", "ignored_users", "e2e_room_keys",
        "e2e_room_keys_versions", "e2e_one_time_keys_json", "pushers", "push_rules",
        "receipts_linearized", "receipts_graph",
    }
)  # fmt: skip

#: A table with a bigger heap is not counted inside a window (about 0.05 s each, cached).
COUNT_BYTES = 64 << 20


def __virtual__() -> str:
    return __virtualname__


def take(
    connection: Mapping[str, Any],
    only: Sequence[str] | None = None,
    upto: int | None = None,
    count_bytes: int = COUNT_BYTES,
) -> dict[str, Any]:
    """Cheap proof of content: what may be compared before and after.

    Tables beyond ``count_bytes`` are left out of the counts, so the time does not grow
    with the data; the end of the event stream stands for them.

    :param connection: a connection.
    :param only: measure exactly these (the keys of an earlier fingerprint), big or not.
    :param upto: last stream_ordering that the tails may show.
    :param count_bytes: size of a heap up to which a table is counted.
    :returns: measure to value: ``count:<table>``, ``digest:<table>``, ``max:events``,
        ``tail:events``, ``tail:event_json``, ``schema:version``, ``schema:compat``.
    """
    wanted = measures(connection, only, count_bytes)
    if connection.get("engine") == "sqlite3":
        return _sqlite(connection["path"], wanted, upto)
    value = __salt__["pgcluster.sql"](
        connection, statement(wanted, upto), timeout=900, what="a fingerprint of the database"
    )[0]
    return {key: value[key] for key in wanted}


def measures(
    connection: Mapping[str, Any], only: Sequence[str] | None = None, count_bytes: int = COUNT_BYTES
) -> list[str]:
    """Which measures :func:`take` would take of this database."""
    sizes = tables(connection)
    known: list[str] = []
    for table in COUNTED:
        if table in sizes and sizes[table] <= count_bytes:
            known.append(f"count:{table}")
            if table in DIGESTED:
                known.append(f"digest:{table}")
    if {"events", "event_json"} <= set(sizes):
        known += ["max:events", "tail:events", "tail:event_json"]
    if "schema_version" in sizes:
        known += ["schema:version"]
    if "schema_compat_version" in sizes:
        known += ["schema:compat"]
    return [m for m in only if m.split(":")[1] in (*sizes, "version", "compat")] if only else known


def statement(wanted: Sequence[str], upto: int | None = None) -> str:
    """One statement, hence one snapshot, that answers all of ``wanted`` as one JSON object.

    :param wanted: measures, see :func:`measures`.
    :param upto: last stream_ordering that the tails may show.
    """
    bound = f"WHERE stream_ordering <= {int(upto)}" if upto is not None else ""
    last = (
        "SELECT event_id, stream_ordering, room_id, type, sender FROM events "
        f"{bound} ORDER BY stream_ordering DESC LIMIT {TAIL}"
    )
    special = {
        "max:events": "(SELECT max(stream_ordering) FROM events)",
        "tail:events": (
            "(SELECT md5(string_agg(concat_ws('|', event_id, stream_ordering, room_id, type, "
            "sender), ',' ORDER BY stream_ordering)) "
            f"FROM ({last}) t)"
        ),
        "tail:event_json": (
            "(SELECT md5(string_agg(md5(j.json), ',' ORDER BY t.stream_ordering)) "
            f"FROM ({last}) t JOIN event_json j USING (event_id))"
        ),
        "schema:version": "(SELECT version FROM schema_version)",
        "schema:compat": "(SELECT compat_version FROM schema_compat_version)",
    }
    parts = []
    for measure in wanted:
        kind, table = measure.split(":")
        if measure in special:
            expression = special[measure]
        elif kind == "count":
            expression = f"(SELECT count(*) FROM {_name(table)})"
        else:
            key, columns = DIGESTED[table]
            row = ", ".join(f"coalesce({c}::text, '~')" for c in columns)
            expression = (
                f"(SELECT md5(coalesce(string_agg(concat_ws('|', {row}), ',' "
                f"ORDER BY {key}), '')) FROM {table})"
            )
        parts.append(f"SELECT '{measure}' AS k, to_json({expression}) AS v")
    return f"SELECT json_object_agg(k, v) FROM ({' UNION ALL '.join(parts)}) m;".replace(
        "AS v UNION", "AS v\nUNION"
    )


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], migrated: bool = False
) -> list[str]:
    """Where two fingerprints disagree, in words; an empty list means: same content.

    :param before: recorded earlier; each of its measures must be in ``after``.
    :param after: taken now.
    :param migrated: a migration lies between, so the schema and the tables of
        ``CHANGED_BY_MIGRATION`` may differ.
    """
    found = []
    for measure, value in sorted(before.items()):
        kind, what = measure.split(":")
        if migrated and (kind == "schema" or what in CHANGED_BY_MIGRATION):
            continue
        if measure not in after:
            found.append(f"{kind} of {what}: was {value}, cannot be measured any more")
        elif after[measure] != value:
            found.append(f"{kind} of {what}: was {value}, is {after[measure]}")
    return found


def tables(connection: Mapping[str, Any]) -> dict[str, int]:
    """Tables of the database and the bytes of their heaps (0 for SQLite)."""
    if connection.get("engine") == "sqlite3":
        with closing(_open(connection["path"])) as db:
            names = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            return {row[0]: 0 for row in names}
    found: dict[str, int] = __salt__["pgcluster.sql"](
        connection,
        "SELECT coalesce(json_object_agg(relname, pg_relation_size(oid)), '{}') FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace;",
        what="the list of tables",
    )[0]
    return found


def _name(table: str) -> str:
    if table not in COUNTED:
        raise CommandExecutionError(f"{table!r} is not one of the tables that are counted")
    return table


def _open(path: str) -> sqlite3.Connection:
    if not os.path.isfile(path):
        raise CommandExecutionError(f"{path}: there is no SQLite database")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as problem:
        db.close()
        raise CommandExecutionError(
            f"{path}: cannot be read as SQLite ({problem}); after a crash start and stop the old "
            "Synapse once, so that it heals its file"
        ) from None
    return db


def _sqlite(path: str, wanted: Sequence[str], upto: int | None) -> dict[str, Any]:
    bound = f"WHERE stream_ordering <= {int(upto)}" if upto is not None else ""
    last = (
        "SELECT event_id, stream_ordering, room_id, type, sender FROM events "
        f"{bound} ORDER BY stream_ordering DESC LIMIT {TAIL}"
    )
    single = {
        "max:events": "SELECT max(stream_ordering) FROM events",
        "schema:version": "SELECT version FROM schema_version",
        "schema:compat": "SELECT compat_version FROM schema_compat_version",
    }
    rows = {
        "tail:events": last,
        "tail:event_json": (
            f"SELECT j.json FROM ({last}) t JOIN event_json j USING (event_id) "
            "ORDER BY t.stream_ordering"
        ),
    }
    answer: dict[str, Any] = {}
    with closing(_open(path)) as db:
        db.execute("BEGIN")
        for measure in wanted:
            kind, table = measure.split(":")
            if measure in single:
                answer[measure] = (db.execute(single[measure]).fetchone() or [None])[0]
            elif kind == "count":
                answer[measure] = db.execute(f"SELECT count(*) FROM {_name(table)}").fetchone()[0]
            else:
                key, columns = DIGESTED.get(table, ("", ()))
                plain = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {key}"
                query = rows.get(measure) or plain
                digest = hashlib.sha256()
                for row in db.execute(query):
                    digest.update(repr(row).encode())
                answer[measure] = digest.hexdigest()
    return answer
