"""The backup before an upgrade, as states: read, compare, act, name the changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgbackup"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def based(
    name: str, database: str = "synapse", cluster: Any = None, slot: str = "saltworks"
) -> dict[str, Any]:
    """A complete, verified base backup is in the folder, and the WAL after it flows in.

    :param name: the folder.
    :param database: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    :param slot: name of the replication slot.
    """
    try:
        manifest, reason = __salt__["pgbackup.standing"](name, database, cluster, slot)
        stands = bool(manifest and not reason)
        if __opts__["test"]:
            problems = [] if stands else __salt__["pgbackup.check"](name, database, cluster)
            if problems:
                return _ret(name, False, "; ".join(problems))
            if stands:
                return _ret(name, True, f"the backup of {manifest['when']} stands")
            return _ret(name, None, f"a base backup of {database} would be taken ({reason})")
        taken = __salt__["pgbackup.base"](name, database, cluster, slot)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if taken["changed"]:
        size = f"{taken['base_bytes'] >> 20} MiB in {taken['seconds']:g} s"
        changes = {"backup": {"old": reason, "new": f"{taken['when']}, {size}"}}
        return _ret(name, True, f"taken and verified: {size}", changes)
    if taken["receiver_started"]:
        return _ret(name, True, "stands", {"wal": {"old": "stopped", "new": "streaming"}})
    return _ret(name, True, f"the backup of {taken['when']} stands")


def proven(
    name: str,
    cluster: Any = None,
    rehearse: Mapping[str, Any] | None = None,
    amcheck_seconds: float = 600,
) -> dict[str, Any]:
    """The backup in the folder was restored and compared, and the migration rehearsed.

    A proof of the very backup that is there, with the release asked for, stands.

    :param name: the folder.
    :param cluster: see ``pgcluster.locate``.
    :param rehearse: see ``pgbackup.prove``.
    :param amcheck_seconds: see ``pgbackup.prove``.
    """
    try:
        state = __salt__["pgbackup.status"](name, cluster)
        manifest, proof = state["manifest"] or {}, state["proof"] or {}
        release = (rehearse or {}).get("release")
        rehearsed = (proof.get("rehearsal") or {}).get("release")
        if proof and proof["backup"] == manifest.get("when") and release in (None, rehearsed):
            return _ret(name, True, f"proven on {proof['when']}")
        if __opts__["test"]:
            return _ret(name, None, "the backup would be restored in a scratch server and compared")
        proof = __salt__["pgbackup.prove"](name, cluster, rehearse, amcheck_seconds)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    words = f"restored to {proof['point']}, {proof['compared']} measures equal"
    changes = {"proof": {"old": "none of this backup", "new": words}}
    if proof["rehearsal"]:
        changes["rehearsal"] = {"old": "none", "new": f"{proof['rehearsal']['seconds']:g} s"}
    return _ret(name, True, f"{words}, {proof['seconds']:g} s", changes)


def marked(
    name: str, directory: str, cluster: Any = None, quiet: bool | str = True
) -> dict[str, Any]:
    """There is a point to come back to that holds all that was written.

    :param name: the mark's name.
    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    :param quiet: see ``pgbackup.mark``.
    """
    try:
        if __opts__["test"]:
            state = __salt__["pgbackup.status"](directory, cluster)
            if name in state["marks"] and __salt__["pgbackup.moved_on"](directory, cluster):
                return _ret(name, True, f"the mark {name} stands, the database has moved on")
            return _ret(name, None, f"the point {name} would be marked in {directory}")
        mark = __salt__["pgbackup.mark"](name, directory, cluster, quiet)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if not mark["changed"]:
        return _ret(name, True, f"the mark of {mark['when']} stands, the database has moved on")
    changes = {"mark": {"old": "", "new": f"{mark['point']} at {mark['lsn']}"}}
    return _ret(name, True, f"marked in {mark['seconds']:g} s", changes)


def restored(name: str, directory: str, cluster: Any = None) -> dict[str, Any]:
    """Synapse's database is as it was at a mark (rollback).

    :param name: the mark's name.
    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    """
    try:
        state = __salt__["pgbackup.status"](directory, cluster)
        if not state["manifest"] or not __salt__["pgbackup.moved_on"](directory, cluster):
            return _ret(name, True, "the database has not left the schema of the backup")
        if __opts__["test"]:
            return _ret(name, None, f"the database would be put back to the mark {name}")
        done = __salt__["pgbackup.restore"](name, directory, cluster)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if not done["changed"]:
        return _ret(name, True, f"already put back to {done['point']}")
    changes = {"database": {"old": f"kept as {done['failed']}", "new": done["point"]}}
    return _ret(name, True, f"put back in {done['seconds']['total']:g} s", changes)


def released(
    name: str, cluster: Any = None, slot: str = "saltworks", keep: bool = True
) -> dict[str, Any]:
    """The server keeps nothing for the backup any more (finalize).

    :param name: the folder.
    :param cluster: see ``pgcluster.locate``.
    :param slot: name of the replication slot.
    :param keep: leave the files.
    """
    try:
        state = __salt__["pgbackup.status"](name, cluster, slot)
        manifest = state["manifest"]
        idle = not state["stream"]["exists"]
        done = idle and (bool(manifest and manifest.get("released")) if keep else manifest is None)
        if done:
            return _ret(name, True, "released")
        if __opts__["test"]:
            what = "kept" if keep else "deleted"
            return _ret(name, None, f"the stream would be ended, the files {what}")
        result = __salt__["pgbackup.release"](name, cluster, slot, keep)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"slot": {"old": slot, "new": ""}} if result["changed"] else {}
    return _ret(name, True, "released", changes)


def forgotten(name: str, cluster: Any = None) -> dict[str, Any]:
    """No database that a rollback has put aside is left (finalize).

    :param name: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    """
    try:
        aside = __salt__["pgrestore.failed"](cluster, name)
        if not aside:
            return _ret(name, True, "nothing was put aside")
        if __opts__["test"]:
            return _ret(name, None, f"would be dropped: {', '.join(aside)}")
        gone = __salt__["pgrestore.forget"](cluster, name)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    return _ret(name, True, "dropped", {database: {"old": "kept", "new": ""} for database in gone})


def _ret(
    name: str, result: bool | None, comment: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    # An orchestration in test mode shows a machine's states only if something would change.
    planned = {"planned": {"old": "", "new": comment}} if result is None else {}
    return {"name": name, "result": result, "comment": comment, "changes": dict(changes or planned)}
