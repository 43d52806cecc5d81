"""What the window of an upgrade asks beside the migration itself.

Backups are those of ``pgbackup`` and ``sqlitebackup``; which of the two made a folder is
told by the database that homeserver.yaml names.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_upgrade"

__salt__: dict[str, Any]

#: Schema 72 (delta 72/01) creates this table with the newest receipt in it, as if all
#: receipts before had been counted into ``event_push_summary``. Those that an older release
#: handled in its own way then count twice: unread numbers grow by what was read long ago
#: (measured on 1.40). With 0 the server counts them again when it starts.
RECEIPTS = "event_push_summary_last_receipt_stream_id"

#: On SQLite a release as old as 1.40 numbers to-device messages on from the highest number
#: still in the table, and the new one would take that over at its first start. Messages that
#: were handed out are deleted, so numbers that clients have seen pass would be given again, and
#: what gets one of them is shown to nobody. Where the count stood is nowhere in the database;
#: so far beyond what is left it cannot have been. A gap does no harm.
TO_DEVICE_LEAP = 10**9


def __virtual__() -> str:
    return __virtualname__


def refuse_pending(schema: Mapping[str, Any] | None) -> None:
    """Refuse a database in which background updates of its own release still wait.

    :param schema: see ``synapse_db.schema``.
    :raises CommandExecutionError: naming them; a newer schema on top breaks the database
        (Synapse's upgrade notes, "Upgrading to v1.x").
    """
    pending = (schema or {}).get("pending", [])
    if pending:
        raise CommandExecutionError(
            f"{len(pending)} background updates of the old release wait "
            f"({', '.join(pending[:5])}); let the old release finish them, then go on"
        )


def way(
    config: str, directory: str, mark: str, choice: str | None, limit: float = 60
) -> dict[str, Any]:
    """Offline or online, by the time that the rehearsal on the restored copy took.

    :param config: path of homeserver.yaml.
    :param directory: the backup's folder, with its proof.
    :param mark: name of the live copy, for SQLite.
    :param choice: the operator's word, ``offline`` or ``online``, or None.
    :param limit: longest offline migration that is taken without asking, in seconds.
    :returns: see ``synapse_db.migration_plan``.
    """
    at = __salt__["synapse_db.connection"](config)
    known = (
        __salt__["sqlitebackup.records"](directory, mark)
        if at["engine"] == "sqlite3"
        else __salt__["pgbackup.records"](directory)
    )
    seconds = ((known["proof"] or {}).get("rehearsal") or {}).get("seconds")
    events = __salt__["synapse_db.facts"](config)["events"]
    plan: dict[str, Any] = __salt__["synapse_db.migration_plan"](seconds, events, limit, choice)
    return plan


def lost(config: str, directory: str, mark: str) -> list[str]:
    """Where the content differs from what it was at a mark, the migration's own changes apart.

    :param config: path of homeserver.yaml.
    :param directory: the backup's folder.
    :param mark: its name.
    :returns: the differences in words; none means that nothing is lost.
    :raises CommandExecutionError: there is no such mark.
    """
    at = __salt__["synapse_db.connection"](config)
    folder = directory if at["engine"] == "sqlite3" else f"{directory}/marks"
    record = __salt__["pgcluster.read_json"](f"{folder}/{mark}.json")
    if not record:
        raise CommandExecutionError(f"{folder}: there is no mark {mark!r} to compare with")
    before = record["fingerprint"]
    after = __salt__["synapse_fingerprint.take"](at, only=list(before))
    found: list[str] = __salt__["synapse_fingerprint.differences"](before, after, migrated=True)
    return found


def receipts_counted_from(config: str) -> int | None:
    """From which receipt on the server will count; None when its schema knows no such thing.

    :param config: path of homeserver.yaml.
    """
    at = __salt__["synapse_db.connection"](config)
    if at["engine"] != "sqlite3":
        rows = __salt__["pgcluster.sql"](
            at,
            f"SELECT to_regclass('{RECEIPTS}') IS NOT NULL AS present \\gset\n\\if :present\n"
            f"SELECT max(stream_id) FROM {RECEIPTS};\n\\endif",
            what="the receipts' place",
        )
        return rows[0] if rows else None
    if RECEIPTS not in __salt__["synapse_fingerprint.tables"](at):
        return None
    with closing(sqlite3.connect(f"file:{at['path']}?mode=ro", uri=True, timeout=10)) as db:
        found = db.execute(f"SELECT max(stream_id) FROM {RECEIPTS}").fetchone()[0]
        return None if found is None else int(found)


def count_all_receipts(config: str) -> None:
    """Have the server count every receipt at its next start; Synapse must be stopped.

    :param config: path of homeserver.yaml.
    """
    at = __salt__["synapse_db.connection"](config)
    if at["engine"] != "sqlite3":
        __salt__["pgcluster.sql"](
            at, f"UPDATE {RECEIPTS} SET stream_id = 0;", what="setting the receipts' place"
        )
        return
    with closing(sqlite3.connect(at["path"], timeout=10)) as db:
        db.execute(f"UPDATE {RECEIPTS} SET stream_id = 0")
        db.commit()


def to_device_place(config: str) -> int | None:
    """From which number on the new release shall count to-device messages.

    :param config: path of homeserver.yaml.
    :returns: None when it will know itself: by PostgreSQL's sequence, or by the position that
        it has written since.
    """
    at = __salt__["synapse_db.connection"](config)
    if at["engine"] != "sqlite3":
        return None
    with closing(sqlite3.connect(f"file:{at['path']}?mode=ro", uri=True, timeout=10)) as db:
        known = "SELECT count(*) FROM stream_positions WHERE stream_name = 'to_device'"
        if db.execute(known).fetchone()[0]:
            return None
        left = (
            "SELECT max(stream_id) FROM (SELECT stream_id FROM device_inbox "
            "UNION ALL SELECT stream_id FROM device_federation_outbox)"
        )
        return int(db.execute(left).fetchone()[0] or 0) + TO_DEVICE_LEAP


def set_to_device_place(config: str, place: int) -> None:
    """Have the server count to-device messages from there on; Synapse must be stopped.

    :param config: path of homeserver.yaml.
    :param place: see :func:`to_device_place`.
    """
    at = __salt__["synapse_db.connection"](config)
    with closing(sqlite3.connect(at["path"], timeout=10)) as db:
        db.execute(
            "INSERT INTO stream_positions (stream_name, instance_name, stream_id) "
            "VALUES ('to_device', 'master', ?)",
            (int(place),),
        )
        db.commit()
