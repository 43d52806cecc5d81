"""Copies of a Synapse's SQLite database, as states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "sqlitebackup"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def taken(name: str, source: str, directory: str, live: bool = False) -> dict[str, Any]:
    """A checked copy of all that was written.

    :param name: of the copy.
    :param source: Synapse's SQLite file.
    :param directory: the backup's folder.
    :param live: Synapse runs while it is taken.
    """
    if __opts__["test"]:
        return _ret(name, None, f"{source} would be copied to {directory}/{name}.db")
    try:
        copy = __salt__["sqlitebackup.take"](source, directory, name, live)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if not copy["changed"]:
        return _ret(name, True, f"the copy of {copy['when']} stands, the database has moved on")
    changes = {"copy": {"old": "", "new": f"{directory}/{name}.db of {copy['when']}"}}
    return _ret(name, True, f"copied in {copy['seconds']:g} s", changes)


def proven(name: str, directory: str, rehearse: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The copy was restored, checked as a whole, and the migration rehearsed.

    :param name: of the copy.
    :param directory: the backup's folder.
    :param rehearse: see ``sqlitebackup.prove``.
    """
    if __opts__["test"]:
        return _ret(name, None, f"{directory}/{name}.db would be restored aside and compared")
    try:
        proof = __salt__["sqlitebackup.prove"](directory, name, rehearse)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    words = f"{proof['compared']} measures equal"
    changes = {"proof": {"old": "", "new": words}}
    if proof["rehearsal"]:
        changes["rehearsal"] = {"old": "", "new": f"{proof['rehearsal']['seconds']:g} s"}
    return _ret(name, True, f"{words}, {proof['seconds']:g} s", changes)


def restored(name: str, directory: str, source: str | None = None) -> dict[str, Any]:
    """The database is the copy again (rollback).

    :param name: of the copy.
    :param directory: the backup's folder.
    :param source: where to, if not where it was taken from.
    """
    try:
        if not __salt__["sqlitebackup.moved_on"](name, directory):
            return _ret(name, True, "the database has not left the schema of the copy")
        if __opts__["test"]:
            return _ret(name, None, f"{directory}/{name}.db would be put in place")
        done = __salt__["sqlitebackup.restore"](name, directory, source)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if not done["changed"]:
        return _ret(name, True, "already put back")
    changes = {"database": {"old": f"kept as {done['failed']}", "new": f"{directory}/{name}.db"}}
    return _ret(name, True, f"put back in {done['seconds']:g} s", changes)


def released(name: str, keep: bool = True) -> dict[str, Any]:
    """The copies are kept, or gone (finalize).

    :param name: the folder.
    :param keep: leave the files.
    """
    exists = __salt__["file.directory_exists"](name)
    if keep or not exists:
        return _ret(name, True, "released")
    if __opts__["test"]:
        return _ret(name, None, f"{name} would be deleted")
    __salt__["sqlitebackup.release"](name, keep=False)
    return _ret(name, True, "deleted", {name: {"old": "kept", "new": ""}})


def forgotten(name: str) -> dict[str, Any]:
    """No database that a rollback has put aside is left beside the file (finalize).

    :param name: Synapse's SQLite file.
    """
    aside = __salt__["sqlitebackup.failed"](name)
    if not aside:
        return _ret(name, True, "nothing was put aside")
    if __opts__["test"]:
        return _ret(name, None, f"would be deleted: {', '.join(aside)}")
    gone = __salt__["sqlitebackup.forget"](name)
    return _ret(name, True, "deleted", {path: {"old": "kept", "new": ""} for path in gone})


def _ret(
    name: str, result: bool | None, comment: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    # An orchestration in test mode shows a machine's states only if something would change.
    planned = {"planned": {"old": "", "new": comment}} if result is None else {}
    return {"name": name, "result": result, "comment": comment, "changes": dict(changes or planned)}
