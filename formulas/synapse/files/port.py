"""A release's own ``synapse_port_db``, held to one pass into a target made for it.

Run by ``salt/_modules/synapse_port.py`` with the release's Python. Answers are lines of JSON.

    stage    where the target stands: empty, prepared, begun or ported
    clear    the target becomes empty, whatever was in it
    mark     the target, which has the release's schema and nothing else, is prepared
    wait     loads the program, waits for a line on standard input, then ports and compares

A table of our own in the target says how far it is, so a second pass, which silently loses what
was changed between the two, has no target: ``wait`` takes only a prepared one, and from its first
moment on the target is no longer that.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sqlite3
import sys
import time
from typing import Any

import yaml

OURS = "saltworks_port"

#: Differ by design, or hold what is made anew (see synapse_port_db): not compared.
NOT_COMPARED = {
    "event_search", "schema_version", "schema_compat_version", "applied_schema_deltas",
    "applied_module_schemas", "background_updates", "user_directory_stream_pos",
    "sent_transactions", "port_from_sqlite3", OURS,
}  # fmt: skip

#: Both engines give what is of these types alike.
PLAIN = {str, int, bool, type(None)}

#: What the admin API's job regenerate_directory queues: the directory is not ported.
DIRECTORY = ("createtables", "process_rooms", "process_users", "cleanup")

#: synapse_port_db leaves sequences at the next value, not yet used. Synapse takes that for its
#: position when it starts, so what is written first would be shown to nobody who had looked
#: before: each is put at the last value used.
USED = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences
                WHERE last_value IS NULL LOOP
        EXECUTE format('SELECT setval(%L, greatest((SELECT last_value FROM %s) - 1, 1))',
                       name, name);
    END LOOP;
END $$
"""

#: Synapse's streams and their sequences (its MultiWriterIdGenerators). The row with a stream's
#: highest id may be gone, as those of to-device messages are once they are delivered: clients
#: have seen that position all the same, and Synapse refuses to start behind it.
STREAMS = {
    "account_data": "account_data_sequence",
    "backfill": "events_backfill_stream_seq",
    "caches": "cache_invalidation_stream_seq",
    "device_lists_stream": "device_lists_sequence",
    "e2e_cross_signing_keys": "e2e_cross_signing_keys_sequence",
    "events": "events_stream_seq",
    "presence_stream": "presence_stream_sequence",
    "profile_updates": "profile_updates_sequence",
    "push_rules_stream": "push_rules_stream_sequence",
    "pushers": "pushers_sequence",
    "quarantined_media": "quarantined_media_id_seq",
    "receipts": "receipts_sequence",
    "sticky_events": "sticky_events_sequence",
    "thread_subscriptions": "thread_subscriptions_sequence",
    "to_device": "device_inbox_sequence",
    "un_partial_stated_event_stream": "un_partial_stated_event_stream_sequence",
    "un_partial_stated_room_stream": "un_partial_stated_room_stream_sequence",
}


def main(action: str, config: str, sqlite: str) -> int:
    """Do one thing; returns the exit code."""
    with open(config, encoding="utf-8") as file:
        loaded = yaml.safe_load(file)
    target = _connected(loaded["database"]["args"])
    if action == "wait":
        return _wait(target, config, sqlite)
    done = {"stage": _stage, "clear": _clear, "mark": _mark}[action](target)
    _say(stage=done)
    return 0


def _connected(args: dict[str, Any]) -> Any:
    import psycopg2

    known = {k: v for k, v in args.items() if not k.startswith("cp_")}
    known["dbname"] = known.pop("database", None) or known.get("dbname")
    return psycopg2.connect(**known, connect_timeout=10)


def _stage(target: Any) -> str:
    with target, target.cursor() as rows:
        rows.execute(f"SELECT to_regclass('{OURS}') IS NOT NULL, to_regclass('events') IS NOT NULL")
        ours, synapses = rows.fetchone()
        if not ours:
            return "unknown" if synapses else "empty"
        rows.execute(f"SELECT stage FROM {OURS}")
        return str(rows.fetchone()[0])


def _clear(target: Any) -> str:
    with target, target.cursor() as rows:
        rows.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if rows.fetchone()[0]:
            # Whatever the record says: who uses it would lose it.
            raise SystemExit("the target is in use, see pg_stat_activity there")
        rows.execute("DROP SCHEMA public CASCADE")
        rows.execute("CREATE SCHEMA public")
    return "empty"


def _mark(target: Any) -> str:
    with target, target.cursor() as rows:
        rows.execute("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM users)")
        if rows.fetchone()[0]:
            raise SystemExit("the target is not empty")
        rows.execute(f"CREATE TABLE {OURS} (stage text NOT NULL)")
        rows.execute(f"INSERT INTO {OURS} VALUES ('prepared')")
    return "prepared"


def _wait(target: Any, config: str, sqlite: str) -> int:
    """Load all that takes time, then go when told to."""
    from synapse._scripts import synapse_port_db
    from synapse.storage.database import LoggingTransaction
    from synapse.storage.engines import PostgresEngine

    began = 0.0
    go = synapse_port_db.reactor.run

    def told() -> None:
        nonlocal began
        # What is loaded stays to the end: the collector need not go through it in the window.
        gc.collect()
        gc.freeze()
        _say(ready=True)
        if not sys.stdin.readline():
            raise SystemExit(0)
        began = time.monotonic()
        _begin(target)
        go()

    # The configuration is read before that and no database touched: people wait from here on.
    synapse_port_db.reactor.run = told
    _hasten(LoggingTransaction, PostgresEngine)
    sys.argv = ["port", "--sqlite-database", sqlite, "--postgres-config", config]
    # It ends the process by itself only when it fails; its word is not taken for it below.
    synapse_port_db.main()
    _finish(target, sqlite, synapse_port_db, began)
    return 0


def _finish(target: Any, sqlite: str, porter: Any, began: float) -> None:
    """What synapse_port_db leaves to do, and whether all has arrived."""
    ported = time.monotonic()
    with target, target.cursor() as rows:
        _set_sequences(rows)
        for number, name in enumerate(DIRECTORY):
            before = f"populate_user_directory_{DIRECTORY[number - 1]}" if number else None
            rows.execute(
                "INSERT INTO background_updates (update_name, progress_json, depends_on) "
                "VALUES (%s, '{}', %s)",
                (f"populate_user_directory_{name}", before),
            )
    tables, wrong, dropped = _compared(target, sqlite, porter)
    if not wrong:
        with target, target.cursor() as rows:
            rows.execute(f"UPDATE {OURS} SET stage = 'ported'")
    _say(
        tables=len(tables),
        rows=sum(tables.values()),
        dropped=dropped,
        different=wrong,
        seconds={
            "port": round(ported - began, 2),
            "compare": round(time.monotonic() - ported, 2),
        },
    )


def _begin(target: Any) -> None:
    with target, target.cursor() as rows:
        rows.execute(f"UPDATE {OURS} SET stage = 'begun' WHERE stage = 'prepared'")
        if rows.rowcount != 1:
            rows.execute(f"SELECT stage FROM {OURS}")
            raise SystemExit(
                f"the target is {rows.fetchone()[0]}, not freshly prepared, and a second pass into "
                "it would lose changes: run the milestone again, it prepares it anew"
            )


def _hasten(transaction: Any, engine: type) -> None:
    """The two things that take half of the pass are spared, on the side of PostgreSQL.

    psycopg2 has a round trip for each row in ``executemany``, which synapse_port_db uses: rows go
    by the hundred, as Synapse's own ``execute_batch`` sends them. And TRUNCATE makes new files for
    a table and its indexes, of which a fresh target has none to throw away: not done for an empty
    one. The statements for the rows, and their transactions, stay the same.

    :param transaction: Synapse's ``LoggingTransaction``.
    :param engine: its ``PostgresEngine``.
    """
    singly, execute = transaction.executemany, transaction.execute

    def batched(self: Any, sql: str, rows: Any) -> None:
        # With SQLite, execute_batch is executemany.
        if isinstance(self.database_engine, engine):
            self.execute_batch(sql, rows)
        else:
            singly(self, sql, rows)

    def executed(self: Any, sql: str, *parameters: Any) -> None:
        words = sql.split(maxsplit=2)
        if words[0] == "TRUNCATE":
            execute(self, f"SELECT 1 FROM {words[1]} LIMIT 1")
            if self.fetchone() is None:
                return
        execute(self, sql, *parameters)

    transaction.executemany, transaction.execute = batched, executed


def _set_sequences(rows: Any) -> None:
    rows.execute(USED)
    rows.execute("SELECT stream_name, max(abs(stream_id)) FROM stream_positions GROUP BY 1")
    for stream, position in rows.fetchall():
        # A stream of a later release: Synapse says at its start when that is behind.
        name = STREAMS.get(stream)
        if name:
            rows.execute(
                f"SELECT setval('{name}', greatest((SELECT last_value FROM {name}), %s))",
                (position,),
            )


def _compared(target: Any, sqlite: str, porter: Any) -> tuple[dict[str, int], list[str], int]:
    """Rows of each table, the tables that differ, and how many rows cannot be ported."""
    source = sqlite3.connect(f"file:{sqlite}?mode=ro", uri=True)
    there = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    counts, wrong, dropped = {}, [], 0
    # One transaction: two round trips fewer for each table.
    with target:
        with target.cursor() as rows:
            rows.execute(there)
            common = {row[0] for row in rows.fetchall()}
        common &= {row[0] for row in source.execute("SELECT name FROM sqlite_master")}
        for table in sorted(common - NOT_COMPARED - set(porter.IGNORED_TABLES)):
            names = [row[1] for row in source.execute(f'PRAGMA table_info("{table}")')]
            # SQLite minds no case, PostgreSQL has all of them small.
            columns = ", ".join(f'"{name.lower()}"' for name in names)
            truths = {names.index(name) for name in porter.BOOLEAN_COLUMNS.get(table, ())}
            query = f'SELECT {columns} FROM "{table}"'
            here = _Sum(truths)
            for row in source.execute(query):
                here.add(row)
            dropped += here.dropped
            over = _Sum(set())
            with target.cursor("content") as rows:
                rows.execute(query)
                for row in rows:
                    over.add(row)
            counts[table] = over.rows
            if (here.rows, here.total) != (over.rows, over.total):
                wrong.append(f"{table} ({here.rows} rows, {over.rows} rows)")
    return counts, wrong, dropped


class _Sum:
    """Rows and a checksum that no order changes, of values as PostgreSQL has them."""

    def __init__(self, truths: set[int]) -> None:
        self.truths = truths
        self.rows = self.total = self.dropped = 0

    def add(self, row: tuple[Any, ...]) -> None:
        if self.truths or not set(map(type, row)) <= PLAIN:
            row = tuple(_plain(cell, number in self.truths) for number, cell in enumerate(row))
        text = repr(row)
        if "\\x00" in text and any(isinstance(cell, str) and "\0" in cell for cell in row):
            # PostgreSQL has no such text: synapse_port_db leaves the row out.
            self.dropped += 1
            return
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
        self.rows += 1
        self.total = (self.total + int.from_bytes(digest.digest(), "big")) % (1 << 64)


def _plain(cell: Any, truth: bool) -> Any:
    if truth:
        # What was never set is false, as synapse_port_db has it.
        return bool(cell)
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    # Both engines give whole numbers for what SQLite may keep as a float, and the other way.
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _say(**words: Any) -> None:
    print("saltworks " + json.dumps(words), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
