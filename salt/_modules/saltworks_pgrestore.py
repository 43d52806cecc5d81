"""The rollback: one database of a live cluster put back as it was at a mark.

The whole cluster is restored in a scratch server, as WAL knows no databases; only
Synapse's is carried over, under a name of its own, checked, and swapped in by two
renames in one transaction. So a kill at any point leaves either the failed database or
the restored one under the old name, and the next call goes on. The failed one stays as
``<name>_failed_<stamp>`` until finalize.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgrestore"

__salt__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def database(
    name: str,
    directory: str,
    cluster: str | Mapping[str, Any] | None = None,
    jobs: int = 2,
) -> dict[str, Any]:
    """Restore Synapse's database to a mark; Synapse must be stopped.

    :param name: the mark's name.
    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    :param jobs: parallel dump and load.
    :returns: ``changed``, ``failed`` (name under which the failed database is kept),
        ``point`` and ``seconds`` (total and each step).
    :raises CommandExecutionError: when it cannot be restored, or the content differs from
        what was recorded at the mark; the database under the old name is then untouched.
    """
    mark = __salt__["pgcluster.read_json"](f"{directory}/marks/{name}.json")
    if not mark:
        raise CommandExecutionError(f"{directory}: there is no mark {name!r} to restore")
    at = __salt__["pgcluster.locate"](cluster)
    with __salt__["pgcluster.held"](directory, f"restore of {name}"):
        record = __salt__["pgcluster.read_json"](f"{directory}/restore.json") or {}
        if record.get("point") == mark["point"] and _is_swapped(at, record):
            _finish(at, directory, record)
            # What people wrote after the rollback must not be rolled back by a second call.
            if not _migrated(at, mark):
                return {"changed": False, "failed": record["failed"], "point": mark["point"]}
        return _restored(directory, mark, at, record, jobs)


def failed(cluster: str | Mapping[str, Any] | None = None, database: str = "synapse") -> list[str]:
    """The databases that restores have put aside, oldest first."""
    at = __salt__["pgcluster.locate"](cluster)
    return [n for n in _names(at) if n.startswith(f"{database}_failed_")]


def forget(cluster: str | Mapping[str, Any] | None = None, database: str = "synapse") -> list[str]:
    """Finalize: drop the databases that restores have put aside.

    :returns: the names that were dropped.
    """
    at = __salt__["pgcluster.locate"](cluster)
    gone = failed(at, database)
    for name in gone:
        _drop(at, name)
    return gone


def _restored(
    directory: str,
    mark: Mapping[str, Any],
    at: Mapping[str, Any],
    record: Mapping[str, Any],
    jobs: int,
) -> dict[str, Any]:
    started = time.monotonic()
    target = mark["database"]
    if record.get("incoming") in _names(at):
        _drop(at, record["incoming"])
    _room(directory, mark, at)
    stamp = __salt__["pgcluster.stamp"]()[:14]
    record = {
        "point": mark["point"],
        "database": target,
        "incoming": f"{target[:40]}_restored_{stamp}",
        "failed": f"{target[:40]}_failed_{stamp}",
        # The rename keeps the oid, which is how a swap is told from a half-made one.
        "old_oid": _oid(at, target),
    }
    __salt__["pgcluster.write_json"](f"{directory}/restore.json", record)
    seconds: dict[str, float] = {}
    try:
        with __salt__["pgscratch.opened"](directory, mark["point"], at) as copy:
            seconds["scratch"] = copy["seconds"]
            wrong = _different(copy, target, mark)
            if wrong:
                raise CommandExecutionError(
                    f"{directory}: the copy restored to {mark['point']} is not what was marked: "
                    f"{'; '.join(wrong)}; the database {target} is untouched"
                )
            _timed(seconds, "carry", lambda: _carry(directory, copy, at, record, jobs))
    finally:
        shutil.rmtree(f"{directory}/dump", ignore_errors=True)
    wrong = _different(at, record["incoming"], mark)
    if wrong:
        raise CommandExecutionError(
            f"{record['incoming']}: is not what was marked: {'; '.join(wrong)}; "
            f"the database {target} is untouched"
        )
    _timed(seconds, "swap", lambda: _swap(at, record))
    _finish(at, directory, record)
    seconds["total"] = round(time.monotonic() - started, 2)
    return {
        "changed": True,
        "failed": record["failed"],
        "point": mark["point"],
        "seconds": seconds,
    }


def _carry(
    directory: str,
    copy: Mapping[str, Any],
    at: Mapping[str, Any],
    record: Mapping[str, Any],
    jobs: int,
) -> None:
    """Dump from the scratch server and load under the incoming name.

    Renamed in the scratch server first, so that the dump itself creates the database:
    owner, encoding, locale, grants and settings come with it, from template0.
    """
    incoming, dump = record["incoming"], f"{directory}/dump"
    _admin(copy, f"ALTER DATABASE {_name(record['database'])} RENAME TO {_name(incoming)};")
    shutil.rmtree(dump, ignore_errors=True)
    source = __salt__["pgcluster.connection"](copy, incoming)
    size = __salt__["pgcluster.sql"](
        source, "SELECT to_json(pg_database_size(current_database()));"
    )[0]
    bound = 300 + size / (1 << 20)
    with __salt__["pgcluster.service"](source) as way:
        __salt__["pgcluster.run"](
            [
                f"{at['bindir']}/pg_dump", "--format=directory", f"--jobs={jobs}", "--compress=1",
                "--create", "--no-sync", "--no-password", f"--file={dump}",
            ],
            os_user=at["os_user"], timeout=bound, what=f"the dump of {incoming}", environment=way,
        )  # fmt: skip
    with __salt__["pgcluster.service"](__salt__["pgcluster.connection"](at)) as way:
        __salt__["pgcluster.run"](
            [
                f"{at['bindir']}/pg_restore", "--create", "--exit-on-error", f"--jobs={jobs}",
                "--no-password", "--dbname=service=saltworks", dump,
            ],
            os_user=at["os_user"], timeout=bound * 3, what=f"loading {incoming}", environment=way,
        )  # fmt: skip
    there = __salt__["pgcluster.connection"](at, incoming)
    __salt__["pgcluster.sql"](there, "ANALYZE;", timeout=bound * 3, what=f"ANALYZE of {incoming}")


def _swap(at: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Two renames in one transaction; who still is connected is put out."""
    target, incoming, failed = record["database"], record["incoming"], record["failed"]
    script = (
        "SELECT to_json(count(pg_terminate_backend(pid))) FROM pg_stat_activity "
        f"WHERE datname IN ({_text(target)}, {_text(incoming)}) AND pid <> pg_backend_pid();\n"
        "BEGIN;\n"
        f"ALTER DATABASE {_name(target)} RENAME TO {_name(failed)};\n"
        f"ALTER DATABASE {_name(incoming)} RENAME TO {_name(target)};\n"
        "COMMIT;"
    )
    last = ""

    def done() -> bool:
        nonlocal last
        try:
            _admin(at, script, timeout=20)
        except CommandExecutionError as problem:
            last = str(problem)
        return _is_swapped(at, record)

    try:
        __salt__["pgcluster.wait_until"](done, 60, "the renames", "", 0.2)
    except CommandExecutionError:
        raise CommandExecutionError(
            f"{target} could not be renamed in 60 s: {last}. Stop what connects to it (see "
            "pg_stat_activity) and call restore again."
        ) from None


def _finish(at: Mapping[str, Any], directory: str, record: Mapping[str, Any]) -> None:
    """After the swap: nobody writes to the failed database by mistake."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(f"{directory}/dump")
    if record["failed"] in _names(at):
        _admin(at, f"ALTER DATABASE {_name(record['failed'])} ALLOW_CONNECTIONS false;")


def _is_swapped(at: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    names = _names(at)
    return (
        record["incoming"] not in names
        and record["database"] in names
        and record["failed"] in names
        and _oid(at, record["failed"]) == record["old_oid"]
    )


def _different(at: Mapping[str, Any], database: str, mark: Mapping[str, Any]) -> list[str]:
    there = __salt__["pgcluster.connection"](at, database)
    now = __salt__["synapse_fingerprint.take"](there, only=list(mark["fingerprint"]))
    found: list[str] = __salt__["synapse_fingerprint.differences"](mark["fingerprint"], now)
    return found


def _migrated(at: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """Whether the live database is on another schema than the marked one."""
    there = __salt__["pgcluster.connection"](at, mark["database"])
    schema = [m for m in mark["fingerprint"] if m.startswith("schema:")]
    now = __salt__["synapse_fingerprint.take"](there, only=schema)
    return any(now.get(m) != mark["fingerprint"][m] for m in schema)


def _room(directory: str, mark: Mapping[str, Any], at: Mapping[str, Any]) -> None:
    server = __salt__["pgcluster.server"](at)
    base = __salt__["pgcluster.tree_bytes"](f"{directory}/base")
    size = server["sizes"].get(mark["database"], 0)
    for path, need in ((directory, base + size // 2), (at["data"], size)):
        free = __salt__["pgcluster.free_bytes"](path)
        if free < need:
            raise CommandExecutionError(
                f"{path}: {free >> 20} MiB free, {need >> 20} MiB needed to restore; make room and "
                "call restore again"
            )


def _timed(seconds: dict[str, float], step: str, act: Any) -> None:
    started = time.monotonic()
    act()
    seconds[step] = round(time.monotonic() - started, 2)


def _names(at: Mapping[str, Any]) -> list[str]:
    names: list[str] = __salt__["pgcluster.sql"](
        __salt__["pgcluster.connection"](at),
        "SELECT coalesce(json_agg(datname ORDER BY datname), '[]') FROM pg_database;",
        what="the list of databases",
    )[0]
    return names


def _oid(at: Mapping[str, Any], database: str) -> int | None:
    rows = __salt__["pgcluster.sql"](
        __salt__["pgcluster.connection"](at),
        f"SELECT to_json(oid::bigint) FROM pg_database WHERE datname = {_text(database)};",
        what="the database's oid",
    )
    return int(rows[0]) if rows else None


def _drop(at: Mapping[str, Any], name: str) -> None:
    _admin(at, f"DROP DATABASE IF EXISTS {_name(name)} WITH (FORCE);", timeout=300)


def _admin(at: Mapping[str, Any], script: str, timeout: float = 60) -> None:
    there = __salt__["pgcluster.connection"](at)
    __salt__["pgcluster.sql"](there, script, timeout=timeout, what=script.split(";")[0][:80])


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
