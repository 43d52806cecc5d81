"""The way back of an upgrade of a Synapse on SQLite: copies by SQLite's own backup API.

A folder holds, for each name, ``<name>.db`` and ``<name>.json`` (the manifest, written
last). ``cp`` is never used on the live file.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "sqlitebackup"

__salt__: dict[str, Any]

#: Pages a step of a live copy takes, between which writers get their turn.
STEP = 2048

#: Files that SQLite keeps beside a database; a stale one would damage a restored file.
COMPANIONS = ("-journal", "-wal", "-shm")


def __virtual__() -> str:
    return __virtualname__


def take(
    source: str, directory: str, name: str, live: bool = False, timeout: float = 3600
) -> dict[str, Any]:
    """Copy a SQLite database and check the copy.

    Taken again on each call, as people may have written since; but once the schema of the
    source has moved on from the copy's, the copy stands, as it is the way back.

    :param source: Synapse's SQLite file.
    :param directory: the backup's folder, made when missing.
    :param name: of the copy, such as ``m1``.
    :param live: Synapse runs: go in small steps, and do not ask for equal content.
    :param timeout: seconds for the copy.
    :returns: the manifest, with ``changed``.
    :raises CommandExecutionError: without room, or when the copy is damaged or differs.

    CLI Example:

    .. code-block:: bash

        salt legacy sqlitebackup.take /home/matrix/synapse/homeserver.db /var/backups/m1 m1
    """
    _checked(name)
    schema = _schema(source)
    known = __salt__["pgcluster.read_json"](f"{directory}/{name}.json")
    if known and known["source"] == source and _moved(known["schema"], schema):
        return {**known, "changed": False}
    if not live:
        __salt__["synapse_upgrade.refuse_pending"](schema)
    started = time.monotonic()
    os.makedirs(directory, mode=0o711, exist_ok=True)
    os.chmod(directory, 0o711)
    with __salt__["pgcluster.held"](directory, f"copy {name}"):
        _room(directory, source, 2.0)
        fresh = f"{directory}/{name}.db.new"
        before = _fingerprint(source)
        _copy(source, fresh, live, timeout)
        after = _fingerprint(source)
        _sound(fresh, "quick_check")
        value = _fingerprint(fresh, list(before))
        wrong = __salt__["pgproof.unproven"](before, after, value)
        if before != after and not live:
            wrong = ["somebody wrote to it while it was copied: stop Synapse first"]
        if wrong:
            os.unlink(fresh)
            raise CommandExecutionError(f"{source}: the copy is not equal: {'; '.join(wrong)}")
        _settled(fresh, f"{directory}/{name}.db")
        manifest = {
            "name": name,
            "source": source,
            "when": __salt__["pgcluster.now"](),
            "schema": schema,
            "bytes": os.path.getsize(f"{directory}/{name}.db"),
            "fingerprint": value,
            "seconds": round(time.monotonic() - started, 3),
        }
        __salt__["pgcluster.write_json"](f"{directory}/{name}.json", manifest)
    return {**manifest, "changed": True}


def prove(directory: str, name: str, rehearse: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Restore a copy beside itself, check all of it, and migrate it for practice.

    :param directory: the backup's folder.
    :param name: of the copy.
    :param rehearse: ``config``, ``release``, ``user``, ``timeout`` as in ``pgbackup.prove``.
    :returns: the proof: ``compared``, ``seconds``, ``rehearsal``.
    :raises CommandExecutionError: when the copy is damaged, or the migration fails.
    """
    manifest = _manifest(directory, name)
    started = time.monotonic()
    with __salt__["pgcluster.held"](directory, f"proof of {name}"), _scratch(directory) as folder:
        _room(directory, f"{directory}/{name}.db", 1.5)
        trial = f"{folder}/homeserver.db"
        _copy(f"{directory}/{name}.db", trial, False, 3600)
        _sound(trial, "integrity_check")
        value = _fingerprint(trial, list(manifest["fingerprint"]))
        wrong = __salt__["synapse_fingerprint.differences"](manifest["fingerprint"], value)
        if wrong:
            raise CommandExecutionError(
                f"{directory}/{name}.db: is not what was recorded: {'; '.join(wrong)}; look at the "
                "disk, and take it again"
            )
        proof = {
            "when": __salt__["pgcluster.now"](),
            "backup": manifest["when"],
            "compared": len(value),
            "restore_seconds": round(time.monotonic() - started, 2),
            "rehearsal": _rehearse(folder, trial, dict(rehearse or {}), value),
        }
    proof["seconds"] = round(time.monotonic() - started, 2)
    __salt__["pgcluster.write_json"](f"{directory}/{name}.proof.json", proof)
    return proof


def records(directory: str, name: str) -> dict[str, Any]:
    """What is written down about a copy: ``manifest`` and ``proof``, None without one.

    :param directory: the backup's folder.
    :param name: of the copy.
    """
    return {
        "manifest": __salt__["pgcluster.read_json"](f"{directory}/{name}.json"),
        "proof": __salt__["pgcluster.read_json"](f"{directory}/{name}.proof.json"),
    }


def restore(name: str, directory: str, source: str | None = None) -> dict[str, Any]:
    """Put the copy in the place of the failed file, in one step; Synapse must be stopped.

    :param name: of the copy.
    :param directory: the backup's folder.
    :param source: where to; the file it was taken from when not given.
    :returns: ``changed``, ``failed`` (where the failed file is kept), ``seconds``.
    :raises CommandExecutionError: when the copy is not what was recorded.
    """
    manifest = _manifest(directory, name)
    place = source or manifest["source"]
    path = f"{directory}/{name}.restore.json"
    started = time.monotonic()
    with __salt__["pgcluster.held"](directory, f"restore of {name}"):
        record = __salt__["pgcluster.read_json"](path) or {}
        if record.get("done") == manifest["when"] and not _moved(
            manifest["schema"], _schema(place)
        ):
            return {"changed": False, "failed": record["failed"], "seconds": 0.0}
        _room(os.path.dirname(place), f"{directory}/{name}.db", 1.1)
        trial = f"{place}.restoring"
        _copy(f"{directory}/{name}.db", trial, False, 3600)
        value = _fingerprint(trial, list(manifest["fingerprint"]))
        wrong = __salt__["synapse_fingerprint.differences"](manifest["fingerprint"], value)
        if wrong:
            raise CommandExecutionError(
                f"{directory}/{name}.db: is not what was recorded: {'; '.join(wrong)}; {place} is "
                "untouched"
            )
        # A run that was killed between its steps goes on under the same name.
        failed = record.get("failed") if "done" not in record else None
        failed = failed or f"{place}.failed_{__salt__['pgcluster.stamp']()[:14]}"
        __salt__["pgcluster.write_json"](path, {"failed": failed})
        _swap(place, trial, failed)
        done = {"failed": failed, "done": manifest["when"]}
        __salt__["pgcluster.write_json"](path, done)
    return {"changed": True, "failed": failed, "seconds": round(time.monotonic() - started, 2)}


def moved_on(name: str, directory: str) -> bool:
    """Whether there is a copy, and its source has left the copy's schema since.

    :param name: of the copy.
    :param directory: the backup's folder.
    """
    manifest = __salt__["pgcluster.read_json"](f"{directory}/{name}.json")
    return bool(manifest) and _moved(manifest["schema"], _schema(manifest["source"]))


def failed(source: str) -> list[str]:
    """The databases that restores have put aside, oldest first, with their companions.

    :param source: Synapse's SQLite file.
    """
    return sorted(glob.glob(f"{glob.escape(source)}.failed_*"))


def forget(source: str) -> list[str]:
    """Finalize: delete the databases that restores have put aside.

    :param source: Synapse's SQLite file.
    :returns: what was deleted.
    """
    gone = failed(source)
    for path in gone:
        os.unlink(path)
    return gone


def release(directory: str, keep: bool = True) -> dict[str, Any]:
    """Finalize: keep or delete the copies.

    :returns: ``changed`` and ``kept``.
    """
    if not os.path.isdir(directory):
        return {"changed": False, "kept": False}
    if not keep:
        shutil.rmtree(directory)
    return {"changed": not keep, "kept": keep}


def _copy(source: str, target: str, live: bool, timeout: float) -> None:
    """SQLite's backup API; it begins anew by itself when another process writes."""
    for path in (target, *(target + c for c in COMPANIONS)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    end = time.monotonic() + timeout

    def bounded(status: int, remaining: int, total: int) -> None:
        if time.monotonic() > end:
            raise TimeoutError

    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(_open(source)) as old, closing(sqlite3.connect(target)) as new:
            new.execute("PRAGMA synchronous = OFF")
            old.backup(new, pages=STEP if live else -1, progress=bounded, sleep=0.01)
    except TimeoutError:
        os.unlink(target)
        raise CommandExecutionError(
            f"{source}: could not be copied in {timeout:g} s, it is written to all the time; stop "
            "Synapse, or give more time"
        ) from None
    except sqlite3.Error as problem:
        os.unlink(target)
        raise CommandExecutionError(f"{source}: cannot be copied to {target}: {problem}") from None
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def _swap(place: str, trial: str, failed: str) -> None:
    """The failed file keeps its bytes under a name of its own; the place is never empty."""
    if os.path.exists(place):
        was = os.stat(place)
        os.chmod(trial, was.st_mode & 0o7777)
        if os.geteuid() == 0:
            os.chown(trial, was.st_uid, was.st_gid)
        with contextlib.suppress(FileExistsError):
            os.link(place, failed)
    for companion in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.replace(place + companion, failed + companion)
    _settled(trial, place)


def _settled(source: str, target: str) -> None:
    os.replace(source, target)
    folder = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sound(path: str, pragma: str) -> None:
    with closing(_open(path)) as db:
        answer = [row[0] for row in db.execute(f"PRAGMA {pragma}")]
    if answer != ["ok"]:
        raise CommandExecutionError(
            f"{path}: PRAGMA {pragma} finds damage: {'; '.join(answer[:5])}. If the source shows "
            "the same, repair it before any upgrade."
        )


def _rehearse(
    folder: str, trial: str, settings: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any] | None:
    if not settings:
        return None
    user = settings.get("user")
    with open(settings["config"], encoding="utf-8") as file:
        configuration = yaml.safe_load(file)
    configuration["database"] = {"name": "sqlite3", "args": {"database": trial}}
    path = f"{folder}/homeserver.yaml"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        yaml.safe_dump(configuration, out)
    if user and os.geteuid() == 0:
        account = __salt__["pgcluster.account"](user)
        for own in (folder, trial, path):
            os.chown(own, account.pw_uid, account.pw_gid)
    there = {"engine": "sqlite3", "path": trial}
    events = before.get("count:events", 0)
    started = time.monotonic()
    __salt__["synapse_db.run_update"](
        path, settings["release"], user, False, float(settings.get("timeout", 14400))
    )
    seconds = round(time.monotonic() - started, 2)
    state = __salt__["synapse_db.schema"](connection=there)
    after = _fingerprint(trial, list(before))
    lost = __salt__["synapse_fingerprint.differences"](before, after, migrated=True)
    if state["pending"] or lost:
        raise CommandExecutionError(
            f"the rehearsed migration to {settings['release']} left {len(state['pending'])} "
            f"updates undone and these differences: {'; '.join(lost) or 'none'}; the live "
            "database is untouched. Do not upgrade."
        )
    return {"seconds": seconds, "events": events, "schema": state, "release": settings["release"]}


@contextlib.contextmanager
def _scratch(directory: str) -> Iterator[str]:
    folder = f"{directory}/scratch"
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _room(directory: str, source: str, copies: float) -> None:
    need = int(os.path.getsize(source) * copies) + (64 << 20)
    free = __salt__["pgcluster.free_bytes"](directory)
    if free < need:
        raise CommandExecutionError(
            f"{directory}: {free >> 20} MiB free, {need >> 20} MiB needed; make room or choose "
            "another folder"
        )


def _manifest(directory: str, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] | None = __salt__["pgcluster.read_json"](
        f"{directory}/{_checked(name)}.json"
    )
    if not manifest or not os.path.isfile(f"{directory}/{name}.db"):
        raise CommandExecutionError(
            f"{directory}: there is no complete copy {name!r}; run sqlitebackup.take"
        )
    return manifest


def _schema(source: str) -> dict[str, Any] | None:
    value: dict[str, Any] | None = __salt__["synapse_db.schema"](
        connection={"engine": "sqlite3", "path": source}
    )
    return value


def _fingerprint(path: str, only: list[str] | None = None) -> dict[str, Any]:
    value: dict[str, Any] = __salt__["synapse_fingerprint.take"](
        {"engine": "sqlite3", "path": path}, only=only
    )
    return value


def _moved(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    if not then or not now:
        return bool(then) != bool(now)
    return (then["version"], then["deltas"]) != (now["version"], now["deltas"])


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,30}", name):
        raise CommandExecutionError(f"{name!r}: a copy is named by A-Z a-z 0-9 _ - only")
    return name


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
