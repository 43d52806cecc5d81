"""What is in a database, to compare it on two machines.

In the window only what costs the same for any size (:func:`brief`). The whole content is
compared afterwards (:func:`measure`), as it was in that moment: on the fenced cluster nothing
has moved, and on the promoted one a session holds that moment's snapshot (:func:`hold`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgcontent"

__salt__: dict[str, Any]

#: Where records are kept, where the cluster does not name another folder.
FOLDER = "/var/lib/saltworks/postgres"

#: Slowest reading and hashing that is reckoned with, bytes a second.
SLOW = 5 << 20

#: How long the snapshot is held at most, in seconds: it keeps VACUUM from cleaning.
HOLD_SECONDS = 86400

#: Of the session that holds the snapshot.
HOLDER = "saltworks-snapshot"

Cluster = str | Mapping[str, Any] | None

_SEQUENCES = """
SELECT coalesce(json_object_agg(schemaname || '.' || sequencename, coalesce(last_value, 0)), '{}')
FROM pg_sequences;
"""

_TABLES = """
SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY 1), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast');
"""

#: A row's text depends on these.
_SESSION = """
SET bytea_output = 'hex'; SET DateStyle = 'ISO'; SET TimeZone = 'UTC';
SET extra_float_digits = 1; SET IntervalStyle = 'postgres'; SET row_security = off;
"""


def __virtual__() -> str:
    return __virtualname__


def folder(cluster: Mapping[str, Any]) -> str:
    """Where a cluster's records are: ours alone, and not in its data folder, which is copied.

    It need not be there: see :func:`made_folder`.
    """
    path: str = cluster.get("records", FOLDER)
    return path


def made_folder(cluster: Mapping[str, Any]) -> str:
    """:func:`folder`, made if it is missing, for who writes there; a mere look changes nothing."""
    path = folder(cluster)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def brief(
    cluster: Mapping[str, Any], database: str, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Proof of content that costs no scan.

    :param cluster: a complete cluster, see ``pgcluster.locate``.
    :param database: its name.
    :param only: see ``synapse_fingerprint.take``.
    :returns: ``fingerprint`` and ``sequences`` (name to last value).
    """
    there = __salt__["pgcluster.connection"](cluster, database)
    return {
        "fingerprint": __salt__["synapse_fingerprint.take"](there, only=only),
        "sequences": __salt__["pgcluster.sql"](there, _SEQUENCES, what="sequences")[0],
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What speaks against ``after`` being ``before``, both of :func:`brief`.

    A sequence may be ahead: PostgreSQL writes WAL for 32 values in advance.
    """
    found: list[str] = __salt__["synapse_fingerprint.differences"](
        before["fingerprint"], after["fingerprint"]
    )
    return found + [
        f"the sequence {name} is {after['sequences'].get(name)}, it was {value}"
        for name, value in sorted(before["sequences"].items())
        if after["sequences"].get(name, -1) < value
    ]


def hold(cluster: Mapping[str, Any], database: str, moment: str) -> str:
    """A session keeps this moment's content visible, until it is measured.

    :param cluster: a complete cluster, see ``pgcluster.locate``.
    :param database: its name.
    :param moment: what to call the moment.
    :returns: the snapshot's name.
    """
    release(cluster)
    there = __salt__["pgcluster.connection"](cluster, database)
    path = f"{made_folder(cluster)}/snapshot"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    script = (
        f"SET application_name = '{HOLDER}';\n"
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
        "SELECT pg_export_snapshot();\n"
        f"SELECT pg_sleep({HOLD_SECONDS});\n"
    )
    params = there["params"]
    argv = [
        f"{there['bindir']}/psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1",
        "-h", str(params["host"]), "-p", str(params["port"]), "-U", params["user"], "-d", database,
    ]  # fmt: skip
    with open(path, "wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            **__salt__["pgcluster.identity"](there["os_user"]),
        )
    assert process.stdin is not None
    process.stdin.write(script.encode())
    process.stdin.close()
    name: str = __salt__["pgcluster.wait_until"](
        lambda: _text(path),
        5,
        "the snapshot of this moment",
        f"See {path}.",
    )
    record = {"snapshot": name, "moment": moment}
    __salt__["pgcluster.write_json"](f"{made_folder(cluster)}/held.json", record)
    return name


def release(cluster: Mapping[str, Any]) -> None:
    """End the session that holds a snapshot."""
    there = __salt__["pgcluster.connection"](cluster)
    __salt__["pgcluster.sql"](
        there,
        "SELECT to_json(count(pg_terminate_backend(pid))) FROM pg_stat_activity "
        f"WHERE application_name = '{HOLDER}';",
        what="ending the snapshot's session",
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder(cluster)}/held.json")


def moment(cluster: Cluster = None) -> str:
    """The switch whose content is to be compared, by its fence's position; empty: none."""
    at = __salt__["pgcluster.locate"](cluster)
    for name in ("fenced", "promoted"):
        record = __salt__["pgcluster.read_json"](f"{folder(at)}/{name}.json")
        if record:
            return str(record["moment"])
    return ""


def measured(cluster: Cluster = None) -> dict[str, Any]:
    """What :func:`measure` recorded of the last switch; empty when that is to be done.

    CLI Example:

    .. code-block:: bash

        salt database pgcontent.measured 15/main
    """
    at = __salt__["pgcluster.locate"](cluster)
    record: dict[str, Any] = __salt__["pgcluster.read_json"](f"{folder(at)}/content.json") or {}
    return record if record.get("moment") == moment(at) else {}


def measure(cluster: Cluster, database: str) -> dict[str, Any]:
    """Rows and a checksum of every table, as they were in the moment of the switch.

    :param cluster: see ``pgcluster.locate``: the fenced one, before it follows, or the
        promoted one, which holds the moment's snapshot.
    :param database: its name.
    :returns: ``moment``, ``tables`` (name to rows and checksum), ``seconds``.
    :raises CommandExecutionError: when the moment's content is no longer to be seen.

    CLI Example:

    .. code-block:: bash

        salt database pgcontent.measure 15/main synapse
    """
    at = __salt__["pgcluster.locate"](cluster)
    known = measured(at)
    if known:
        return known
    there = __salt__["pgcluster.connection"](at, database)
    when, held = moment(at), __salt__["pgcluster.read_json"](f"{folder(at)}/held.json") or {}
    still = _stands_still(at)
    if not still and held.get("moment") != when:
        raise CommandExecutionError(_too_late(database))
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
    if not still:
        begin += f"SET TRANSACTION SNAPSHOT '{held['snapshot']}';\n"
    tables, size = __salt__["pgcluster.sql"](
        there, f"{_TABLES}\nSELECT to_json(pg_database_size(current_database()));", what="tables"
    )
    started = __salt__["pgcluster.now"]()
    try:
        rows = __salt__["pgcluster.sql"](
            there,
            _SESSION + begin + "".join(map(_sum, tables)),
            timeout=600 + size / SLOW,
            what=f"measuring {database}",
        )
    except CommandExecutionError as problem:
        if "snapshot" in str(problem):
            raise CommandExecutionError(_too_late(database)) from None
        raise
    record = {
        "moment": when,
        "tables": dict(zip(tables, rows, strict=True)),
        "begun": started,
        "ended": __salt__["pgcluster.now"](),
    }
    __salt__["pgcluster.write_json"](f"{made_folder(at)}/content.json", record)
    if not still:
        release(at)
    return record


def _stands_still(at: Mapping[str, Any]) -> bool:
    """Whether nothing was written since the switch: fenced, and not following yet."""
    fenced = __salt__["pgcluster.read_json"](f"{folder(at)}/fenced.json")
    return bool(fenced) and not fenced.get("followed")


def _sum(table: str) -> str:
    return (
        "SELECT json_build_array(count(*), coalesce(sum(hashtextextended("
        "saltworks_row::text COLLATE \"C\", 0)::numeric), 0)::text) "
        f"FROM {table} saltworks_row;\n"
    )


def _too_late(database: str) -> str:
    return (
        f"{database}: the content as of the switch is no longer held here (the server was "
        "restarted since), so it cannot be compared. Run salt-run state.orchestrate "
        "orch.m3.database.rollback, which loses nothing, and the milestone again"
    )


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if "ERROR" in text or "FATAL" in text or "error:" in text:
        raise CommandExecutionError(f"no snapshot of this moment: {text.strip()}")
    return text.strip() if text.endswith("\n") else ""
