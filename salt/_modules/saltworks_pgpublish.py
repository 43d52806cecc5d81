"""A PostgreSQL cluster gives its rows to another one of a newer version: what that takes of it.

    survey    what its database has that logical replication would leave behind
    enable    ``wal_level = logical``, which takes a restart; disable: as it was
    publish   all tables, each with a replica identity, to a role; unpublish: as it was

Without a replica identity PostgreSQL refuses every UPDATE and DELETE of a published table, so the
identities come first, and a table that is made later needs one (no release is upgraded while a
milestone runs).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgpublish"

__salt__: dict[str, Any]

PUBLICATION = "saltworks"

#: How long others may wait for a lock of ours at a time, and how long we try for one.
LOCK_TIMEOUT, LOCK_SECONDS = "200ms", 120

Cluster = str | Mapping[str, Any] | None

_OURS = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"

_TABLE = "format('%I.%I', n.nspname, c.relname)"

_PLAIN = f"""
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {_OURS}"""

#: Neither a primary key nor another identity.
_KEYLESS = f"""{_PLAIN}
  AND c.relreplident IN ('d', 'n')
  AND NOT EXISTS (SELECT FROM pg_index p WHERE p.indrelid = c.oid AND p.indisprimary)"""

#: With a unique index that may be an identity (PostgreSQL: ALTER TABLE), if there is one.
_IDENTITIES = f"""
SELECT json_build_array({_TABLE}, (
  SELECT format('%I', i.relname) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
  WHERE x.indrelid = c.oid AND x.indisunique AND x.indimmediate AND x.indisvalid
    AND x.indpred IS NULL AND x.indexprs IS NULL
    AND NOT EXISTS (
      SELECT FROM generate_series(0, x.indnkeyatts - 1) k
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.indkey[k]
      WHERE NOT a.attnotnull)
  ORDER BY x.indnatts, i.relname LIMIT 1)) {_KEYLESS} ORDER BY n.nspname, c.relname;
"""

#: Types without an equality that comparing whole rows could use.
_UNEQUAL = "'json', 'xml', 'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle'"

_SURVEY = f"""
SELECT json_build_object(
  'max_logical_replication_workers', current_setting('max_logical_replication_workers')::int,
  'max_worker_processes', current_setting('max_worker_processes')::int,
  'owner', EXISTS (SELECT FROM pg_roles WHERE rolname = :user),
  'superuser', EXISTS (SELECT FROM pg_roles WHERE rolname = :user AND rolsuper),
  'extensions', (SELECT coalesce(json_agg(extname ORDER BY extname), '[]') FROM pg_extension
     WHERE extname <> 'plpgsql'),
  'large_objects', (SELECT count(*) FROM pg_largeobject_metadata),
  'unlogged', (SELECT coalesce(json_agg({_TABLE} ORDER BY c.relname), '[]')
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND {_OURS}),
  'odd', (SELECT coalesce(json_agg({_TABLE} ORDER BY c.relname), '[]')
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('m', 'f') AND {_OURS}),
  'unequal', (SELECT coalesce(json_agg({_TABLE} || '.' || a.attname ORDER BY c.relname), '[]')
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE a.atttypid::regtype::text IN ({_UNEQUAL}) AND c.oid IN (SELECT c.oid {_KEYLESS})),
  'subscriptions', (SELECT coalesce(json_agg(subname ORDER BY subname), '[]')
     FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
     WHERE d.datname = current_database()),
  'prepared', (SELECT coalesce(json_agg(gid ORDER BY gid), '[]') FROM pg_prepared_xacts
     WHERE database = current_database()));
"""

_RIGHTS = """
SELECT to_json(count(*)) FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
JOIN pg_database d ON d.oid = s.dbid
WHERE d.datname = current_database() AND r.rolname = :role;
"""

#: What filling tables has left behind where it was cut short (PostgreSQL: pg_NN_sync_NN_NN).
_LEFT_SLOTS = """
FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'
  AND NOT active AND slot_name LIKE 'pg\\_%\\_sync\\_%'"""


def __virtual__() -> str:
    return __virtualname__


def survey(cluster: Cluster, database: str, user: str) -> dict[str, Any]:
    """What of a database would be left behind, or stumbled over.

    :param cluster: see ``pgcluster.locate``.
    :param database: its name.
    :param user: Synapse's role.
    :returns: ``owner`` and ``superuser`` (whether the role is there, and is one),
        ``max_logical_replication_workers``, ``max_worker_processes``, ``large_objects`` (how
        many), and lists of names: ``extensions``, ``unlogged``, ``odd`` (relations with data
        that are no tables), ``unequal`` (columns), ``subscriptions``, ``prepared``, ``pending``
        (background updates).

    CLI Example:

    .. code-block:: bash

        salt legacy pgpublish.survey '{"port": 5432}' synapse synapse_user
    """
    at = __salt__["pgcluster.locate"](cluster)
    row: dict[str, Any] = _sql(at, database, _SURVEY.replace(":user", _quoted(user)))[0]
    schema = __salt__["synapse_db.schema"](
        connection=__salt__["pgcluster.connection"](at, database)
    )
    return {**row, "pending": (schema or {}).get("pending", [])}


def wants_restart(cluster: Cluster) -> bool:
    """Whether the server has to be restarted before its rows can be replicated."""
    at = __salt__["pgcluster.locate"](cluster)
    return bool(_wal_level(at) != "logical")


def checkpoint(cluster: Cluster) -> bool:
    """Write out what is dirty, so that the next shutdown is short."""
    at = __salt__["pgcluster.locate"](cluster)
    __salt__["pgserver.sql"](at, "CHECKPOINT;", 600)
    return True


def enable(cluster: Cluster) -> dict[str, Any]:
    """The server runs with ``wal_level = logical``; it is restarted for that, once.

    :param cluster: see ``pgcluster.locate``.
    :returns: ``changed`` and ``seconds``.
    :raises CommandExecutionError: when it does not stop, or does not start.
    """
    at = __salt__["pgcluster.locate"](cluster)
    begun = time.monotonic()
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        __salt__["pgserver.start"](at, 60)
    changed = _configure(at)
    if _wal_level(at) != "logical":
        __salt__["pgserver.stop"](at, "fast", 30)
        __salt__["pgserver.start"](at, 60)
        changed = True
    return {"changed": changed, "seconds": round(time.monotonic() - begun, 3)}


def disable(cluster: Cluster) -> bool:
    """What :func:`enable` wrote is taken back, for the next restart; and the server runs.

    :returns: whether something had to be done.
    """
    at = __salt__["pgcluster.locate"](cluster)
    if __salt__["pgserver.recorded"](at, "enabled") is None:
        return False
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        # It does not start with that, perhaps.
        path = f"{at['data']}/postgresql.auto.conf"
        with open(path, encoding="utf-8") as file:
            lines = [line for line in file if not re.match(r"wal_level\b", line)]
        __salt__["pgserver.write"](at, path, "".join(lines))
        __salt__["pgserver.start"](at, 60)
    else:
        __salt__["pgserver.configure"](at, wal_level=None)
    __salt__["pgserver.forget"](at, "enabled")
    return True


def publish(cluster: Cluster, database: str, role: str, test: bool = False) -> list[str]:
    """A role may read and follow all tables, each of which has a replica identity.

    Nobody waits longer for a lock of ours than ``LOCK_TIMEOUT``; each is tried again.

    :param cluster: see ``pgcluster.locate``.
    :param database: its name.
    :param role: it exists, and may replicate.
    :param test: only say what would be done.
    :returns: what was changed.
    :raises CommandExecutionError: when it cannot be published yet, or a lock is not to be had.

    CLI Example:

    .. code-block:: bash

        salt legacy pgpublish.publish '{"port": 5432}' synapse saltworks_replication
    """
    at = __salt__["pgcluster.locate"](cluster)
    rows, published = keyless(at, database), _is_published(at, database)
    hidden = _sql(
        at,
        database,
        f"SELECT to_json(count(*)) {_PLAIN} AND NOT coalesce((SELECT has_table_privilege(oid, "
        f"c.oid, 'SELECT') FROM pg_roles WHERE rolname = {_quoted(role)}), false);",
    )[0]
    steps = {
        f"replica identity of {len(rows)} tables": bool(rows),
        f"rights of {role}": bool(hidden),
        f"publication {PUBLICATION}": not published,
    }
    changed = [name for name, wanted in steps.items() if wanted]
    if test:
        return changed
    if _wal_level(at) != "logical":
        raise CommandExecutionError(
            f"{database}: wal_level is {_wal_level(at)}, not logical; run the milestone, which "
            "restarts PostgreSQL behind a shut door"
        )
    _configure(at)
    identify(at, database)
    if hidden:
        grant(at, database, role)
    if not published:
        _sql(at, database, f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES;")
    return changed


def unpublish(cluster: Cluster, database: str, role: str, test: bool = False) -> list[str]:
    """Nothing of :func:`publish` and :func:`enable` is left; arguments are the same.

    ``wal_level`` changes with the next restart, which need not be soon.
    """
    at = __salt__["pgcluster.locate"](cluster)
    tables = _identified(at)
    left = _sql(at, database, f"SELECT to_json(slot_name) {_LEFT_SLOTS};")
    rights = _sql(at, database, _RIGHTS.replace(":role", _quoted(role)))[0]
    steps = {
        f"publication {PUBLICATION}": _is_published(at, database),
        **{f"slot {name}": True for name in left},
        f"replica identity of {len(tables)} tables": bool(tables),
        f"rights of {role}": bool(rights),
        "wal_level": __salt__["pgserver.recorded"](at, "enabled") is not None,
    }
    changed = [name for name, wanted in steps.items() if wanted]
    if test:
        return changed
    _sql(
        at,
        database,
        f"DROP PUBLICATION IF EXISTS {PUBLICATION};\n"
        f"SELECT to_json(pg_drop_replication_slot(slot_name)::text) {_LEFT_SLOTS};",
    )
    _unidentify(at, database, tables)
    if rights:
        _sql(at, database, f'DROP OWNED BY "{role}";')
    disable(at)
    return changed


def grant(cluster: Cluster, database: str, role: str) -> None:
    """A role may read what filling tables and pg_dump read.

    Table by table: PostgreSQL 13 has no pg_read_all_data.
    """
    at = __salt__["pgcluster.locate"](cluster)
    schemas = f"SELECT to_json(format('%I', n.nspname)) FROM pg_namespace n WHERE {_OURS};"
    lines = [f'GRANT CONNECT ON DATABASE "{database}" TO "{role}";']
    for schema in _sql(at, database, schemas):
        lines += [
            f'GRANT USAGE ON SCHEMA {schema} TO "{role}";',
            f'GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO "{role}";',
            f'GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO "{role}";',
        ]
    _sql(at, database, "BEGIN;\n" + "\n".join(lines) + "\nCOMMIT;")


def keyless(cluster: Cluster, database: str) -> list[list[str | None]]:
    """Tables of which no row could be named: each with an index that would do, or None."""
    at = __salt__["pgcluster.locate"](cluster)
    rows: list[list[str | None]] = _sql(at, database, _IDENTITIES)
    return rows


def identify(cluster: Cluster, database: str) -> list[str]:
    """Every table has a replica identity; which of them have one by us is written down.

    :returns: all of those, from earlier as well.
    :raises CommandExecutionError: when a lock is not to be had.
    """
    at = __salt__["pgcluster.locate"](cluster)
    rows = keyless(at, database)
    tables = sorted({*_identified(at), *(str(table) for table, _ in rows)})
    if rows:
        __salt__["pgserver.record"](at, "identities", {"tables": tables})

    def done() -> bool:
        left = keyless(at, database)
        _try_each(
            at,
            database,
            [
                f"ALTER TABLE {table} REPLICA IDENTITY "
                + (f"USING INDEX {index};" if index else "FULL;")
                for table, index in left
            ],
        )
        return not left or not keyless(at, database)

    __salt__["pgcluster.wait_until"](done, LOCK_SECONDS, "the lock of a table", _WHO, 0.5)
    return tables


def _unidentify(at: Mapping[str, Any], database: str, tables: list[str]) -> None:
    names = ", ".join(map(_quoted, tables)) or "NULL"

    def done() -> bool:
        query = f"SELECT to_json({_TABLE}) {_PLAIN} AND c.relreplident IN ('f', 'i') "
        left = _sql(at, database, f"{query} AND {_TABLE} IN ({names});")
        _try_each(at, database, [f"ALTER TABLE {t} REPLICA IDENTITY DEFAULT;" for t in left])
        return not left

    __salt__["pgcluster.wait_until"](done, LOCK_SECONDS, "the lock of a table", _WHO, 0.5)
    __salt__["pgserver.forget"](at, "identities")


_WHO = "A transaction holds it for long: see pg_stat_activity, then run this again"


def _try_each(at: Mapping[str, Any], database: str, statements: list[str]) -> None:
    """Each by itself; one that would wait for a lock is left for the next time."""
    if statements:
        head = f"\\set ON_ERROR_STOP 0\nSET lock_timeout = '{LOCK_TIMEOUT}';\n"
        _sql(at, database, head + "\n".join(statements))


def _configure(at: Mapping[str, Any]) -> bool:
    """``wal_level = logical`` is what the server would start with."""
    line = "SELECT to_json(setting) FROM pg_file_settings WHERE name = 'wal_level' ORDER BY seqno;"
    if [*__salt__["pgserver.sql"](at, line)][-1:] == ["logical"]:
        return False
    __salt__["pgserver.record"](at, "enabled", {"wal_level": "logical"})
    __salt__["pgserver.configure"](at, wal_level="logical")
    return True


def _wal_level(at: Mapping[str, Any]) -> str:
    level: str = __salt__["pgserver.sql"](at, "SELECT to_json(current_setting('wal_level'));")[0]
    return level


def _is_published(at: Mapping[str, Any], database: str) -> bool:
    query = f"SELECT to_json(count(*)) FROM pg_publication WHERE pubname = '{PUBLICATION}';"
    return bool(_sql(at, database, query)[0])


def _identified(at: Mapping[str, Any]) -> list[str]:
    return list((__salt__["pgserver.recorded"](at, "identities") or {}).get("tables", []))


def _sql(at: Mapping[str, Any], database: str, script: str) -> list[Any]:
    rows: list[Any] = __salt__["pgserver.sql"](at, script, 60, database)
    return rows


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
