"""A cluster of this machine put back as it was at a time, from its backups.

The data folder is kept aside, and a server restored beside it is recovered to the time on a socket
of its own, where it stops and is looked at. Only then it becomes a primary, on a new timeline, and
the machine's own. Until then whatever fails puts the old folder back, and the store never hears of
it; a call after a killed one does so first, unless somebody has started the server since. What is
put away is renamed, and deleted by :func:`forget` alone. Who uses the database must be kept out
meanwhile, by whoever conducts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgpitr"

__salt__: dict[str, Any]

#: A server may take so long to stop, and to start, in seconds.
STOP_SECONDS, START_SECONDS = 180, 180

#: The unit that runs PostgreSQL where it is a member of a cluster.
PATRONI = "patroni"

#: In place of a time.
LATEST = "latest"

#: It takes writes, or follows one that does: and is no copy that stands still in its recovery.
IN_USE = (
    "SELECT to_json(NOT pg_is_in_recovery() OR "
    "EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'));"
)

TIMELINE = "SELECT to_json(('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int);"


def __virtual__() -> str:
    return __virtualname__


def restore(target: str, label: str, timeline: int, bytes: int, path: str = "") -> dict[str, Any]:
    """The cluster as it was at a time; nobody may be using it.

    :param target: ISO 8601 with zone: what was committed later is not in it. Or ``latest``, for a
        server that is lost, and does not run: all there is in the store.
    :param label: the backup to begin with.
    :param timeline: that recovery is to follow.
    :param bytes: of the cluster in the backup.
    :param path: of the formula's settings, if not its own.
    :returns: ``changed``, ``target``, ``reached`` (time of the last commit in it), ``timeline``
        (``from`` and ``to``), ``kept`` (the old data folder), ``one_time_keys`` (how many were
        dropped), ``seconds`` of each step. Unchanged when this is what was done last, and the
        server is still on the timeline that came of it.
    :raises CommandExecutionError: it failed; says what stands in its place.

    CLI Example:

    .. code-block:: bash

        salt database pgpitr.restore 2026-11-28T01:30:00+00:00 20261127-020012F 1 73400320
    """
    here = _settings(path)
    words = ["--type=default"]
    if target != LATEST:
        # pgBackRest's form of a time. It stands still there, to be looked at.
        when = datetime.fromisoformat(target).isoformat(sep=" ")
        words = ["--type=time", f"--target={when}", "--target-action=pause"]
    folder = __salt__["pgcontent.made_folder"](here)
    with __salt__["pgcluster.held"](folder, f"restore to {target}"):
        record = _record(here)
        if record.get("target") == target and _stands(here, record):
            return {**_finished(here, record), "changed": False}
        if record.get("step") == "begun":
            _put_back(here, record)
        elif record.get("step") == "restored":
            _finished(here, record)
        source = {"target": target, "label": label, "timeline": timeline}
        return _restored(here, source, words, bytes)


def kept(path: str = "") -> dict[str, Any]:
    """What the last restore left.

    :returns: its record; ``stands``: it came to its end, and the server is still on its timeline;
        ``folders``: data folders that were put away.
    """
    here = _settings(path)
    parent, name = os.path.split(here["data"])
    away = (f"{name}.before-", f"{name}.failed-")
    folders = sorted(row for row in os.listdir(parent) if row.startswith(away))
    record = _record(here)
    stands = record.get("step") == "serving" and _stands(here, record)
    return {**record, "stands": stands, "folders": [f"{parent}/{row}" for row in folders]}


def forget(path: str = "") -> list[str]:
    """Finalize: delete the data folders that restores put away, and the record.

    :returns: the folders.
    :raises CommandExecutionError: a restore was cut off, and no server is in use since.
    """
    here = _settings(path)
    with __salt__["pgcluster.held"](__salt__["pgcontent.made_folder"](here), "forgetting"):
        if _record(here).get("step") in ("begun", "restored") and not _asked(here, IN_USE):
            raise CommandExecutionError(
                f"a restore was cut off, and {here['data']} has no server that takes writes or "
                "follows one that does: run the restore again before this"
            )
        gone: list[str] = kept(path)["folders"]
        for folder in gone:
            shutil.rmtree(folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_record_path(here))
    return gone


def _restored(
    here: Mapping[str, Any], source: Mapping[str, Any], words: list[str], size: int
) -> dict[str, Any]:
    parent, target = os.path.dirname(here["data"]), source["target"]
    # On a machine that lost all Patroni waits for a leader, with nothing.
    lost = not os.path.isdir(here["data"]) or not os.listdir(here["data"])
    if not lost and not os.path.isdir(f"{here['data']}/pg_tblspc"):
        raise CommandExecutionError(f"{here['data']} is no data folder: apply this machine's role")
    __salt__["pgbackrest.need_room"](parent, size)
    if not lost and os.listdir(f"{here['data']}/pg_tblspc"):
        raise CommandExecutionError(
            f"{here['data']} has tablespaces, which this restore cannot keep aside; restore by hand"
        )
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    if _serves(here):
        _nobody_is_in(here)
        _close(here)
    elif __salt__["pgcluster.condition"](here["data"]) != "gone":
        raise CommandExecutionError(
            f"{here['data']}: its server runs, and is no primary: restore on the primary's "
            "machine, or stop this one first. Nothing was changed"
        )
    record = {
        "step": "begun",
        "from": _timeline(here),
        "enabled": bool(__salt__["service.enabled"](here["unit"])),
        "kept": f"{here['data']}.before-{__salt__['pgcluster.stamp']()[:14]}",
        **source,
    }
    _lap(seconds, "archived", begun)
    if lost:
        __salt__["pgcluster.make_directory"](here["data"], here["os_user"])
    _write(here, record)
    promoting = False
    try:
        _stop(here)
        _lap(seconds, "stopped", begun)
        os.rename(here["data"], record["kept"])
        __salt__["pgcluster.make_directory"](here["data"], here["os_user"])
        chosen = [f"--set={source['label']}", f"--target-timeline={source['timeline']}"]
        bound = 300 + __salt__["pgrecovery.seconds"](size)
        __salt__["pgbackrest.command"](here, ["restore", *chosen, *words], bound)
        _lap(seconds, "restored", begun)
        with __salt__["pgrecovery.serving"](here, size) as there:
            record |= __salt__["pgrecovery.reached"](there, size)
            _lap(seconds, "recovered", begun)
            promoting = True
            record |= __salt__["pgrecovery.promote"](there, here["database"])
    except CommandExecutionError as problem:
        if promoting:
            # The store may have heard of the new timeline: only another restore gets past it.
            raise CommandExecutionError(
                f"restored to {target}, and not fit for use: {problem} Nothing serves now, and "
                f"what was before is in {record['kept']}. Call it again: it begins anew."
            ) from None
        try:
            _put_back(here, record)
        except CommandExecutionError as second:
            raise CommandExecutionError(f"not restored to {target}: {problem} {second}") from None
        stands = (
            "there is no database here, as before"
            if lost
            else "the database as it was before serves again"
        )
        raise CommandExecutionError(f"not restored to {target}, {stands}: {problem}") from None
    record |= {"to": _timeline(here), "step": "restored"}
    _write(here, record)
    done = _finished(here, record)
    _lap(seconds, "serving", begun)
    return {**done, "changed": True, "seconds": seconds}


def _nobody_is_in(here: Mapping[str, Any]) -> None:
    """Refuse to take a database away from under those who use it."""
    asked = (
        "SELECT coalesce(json_agg(DISTINCT coalesce(host(client_addr), 'this machine') || ' as ' "
        "|| usename), '[]') FROM pg_stat_activity "
        f"WHERE datname = '{here['database']}' AND backend_type = 'client backend';"
    )
    there = __salt__["pgcluster.connection"](here)
    who = __salt__["pgcluster.sql"](there, asked, what="who is connected")[0]
    if who:
        raise CommandExecutionError(
            f"{here['database']} is in use: {', '.join(who)}. Shut the door, stop Synapse and its "
            "workers, and call it again. Nothing was changed"
        )


def _close(here: Mapping[str, Any]) -> None:
    """All that was written is in the store: the way back, and what recovery can stop at.

    :raises CommandExecutionError: the store does not take it.
    """
    there = __salt__["pgcluster.connection"](here)
    # Recovery to a time ends at the first commit after it, and with an error if there is none.
    _, segment = __salt__["pgcluster.sql"](
        there,
        "SELECT to_json(pg_current_xact_id()::text);\n"
        "SELECT to_json(pg_walfile_name(pg_switch_wal()));",
        what="the end of the WAL",
    )
    __salt__["pgbackrest.archived"](here, segment)


def _finished(here: Mapping[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """It serves; for its user's answer."""
    then = f"What was before is in {record['kept']}; see journalctl -u {here['unit']}"
    if here["unit"] == PATRONI and record["step"] != "serving":
        __salt__["patroni_machine.go_back"]()
    _started(here, record, "serve what was restored", then)
    if record["step"] != "serving":
        # Patroni begins with a timeline of its own.
        record |= {"to": _timeline(here), "step": "serving"}
        _write(here, record)
    timeline = {"from": record["from"], "to": record["to"]}
    kept_ = {key: record[key] for key in ("target", "reached", "kept", "one_time_keys")}
    return {**kept_, "timeline": timeline}


def _stands(here: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a restore is the last thing that was done to the server, but for writing in it."""
    whole = record.get("step") in ("restored", "serving")
    return whole and _timeline(here) == record["to"]


def _put_back(here: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """The data folder of before is in its place again, and serves.

    :raises CommandExecutionError: somebody has started the server since: it is left alone.
    """
    if os.path.isdir(record["kept"]):
        _nobody_began(here, record)
        __salt__["pgrecovery.stop"](here)
        if os.path.isdir(here["data"]):
            stamp = __salt__["pgcluster.stamp"]()[:14]
            os.rename(here["data"], f"{here['data']}.failed-{stamp}")
        os.rename(record["kept"], here["data"])
    os.unlink(_record_path(here))
    # Timeline 0: there was nothing that could serve.
    _started(here, record, "serve as before", f"See journalctl -u {here['unit']}", record["from"])


def _nobody_began(here: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse to take away a data folder that may be the living one."""
    found = [f"{here['unit']} is active"] if __salt__["service.status"](here["unit"]) else []
    found += ["its server answers"] if _asked(here, "SELECT to_json(true);") else []
    if found:
        raise CommandExecutionError(
            f"{here['data']} is left alone: a restore to {record['target']} was cut off here, and "
            f"since then {' and '.join(found)}. What was before is in {record['kept']}. Where the "
            "server has what is wanted, pgpitr.forget clears that record and deletes that folder; "
            f"where it has not, systemctl disable --now {here['unit']}, and call this again"
        )


def _serves(here: Mapping[str, Any]) -> bool:
    """Whether the server takes writes: Patroni has it a standby first."""
    return bool(_asked(here, "SELECT to_json(NOT pg_is_in_recovery());"))


def _asked(here: Mapping[str, Any], script: str) -> Any:
    """The server's answer on its own socket, None without one."""
    try:
        return __salt__["pgcluster.sql"](__salt__["pgcluster.connection"](here), script)[0]
    except CommandExecutionError:
        return None


def _started(
    here: Mapping[str, Any], record: Mapping[str, Any], what: str, then: str, serves: int = 1
) -> None:
    if record["enabled"]:
        __salt__["service.enable"](here["unit"])
    __salt__["service.start"](here["unit"])
    if serves:
        __salt__["pgcluster.wait_until"](
            lambda: _serves(here), START_SECONDS, f"{here['unit']} to {what}", then, 0.2
        )


def _stop(here: Mapping[str, Any]) -> None:
    """It does not run, and does not with the machine's next start: what is here is half a copy."""
    __salt__["service.disable"](here["unit"])
    __salt__["service.stop"](here["unit"])
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgcluster.condition"](here["data"]) == "gone",
        STOP_SECONDS,
        f"{here['unit']} to stop",
        f"See journalctl -u {here['unit']}",
        0.2,
    )


def _timeline(here: Mapping[str, Any]) -> int:
    """The server's; of one that does not take writes by its control file, 0 without one."""
    # The file follows a promotion with the next checkpoint.
    if _serves(here):
        return int(_asked(here, TIMELINE))
    if not os.path.exists(f"{here['data']}/global/pg_control"):
        return 0
    said = __salt__["pgcluster.run"](
        [f"{here['bindir']}/pg_controldata", here["data"]],
        os_user=here["os_user"],
        what="pg_controldata",
    )
    line = next(row for row in said.splitlines() if "Latest checkpoint's TimeLineID" in row)
    return int(line.split(":")[1])


def _settings(path: str) -> dict[str, Any]:
    found: dict[str, Any] = __salt__["pgbackrest.settings"](*([path] if path else []))
    return found


def _record_path(here: Mapping[str, Any]) -> str:
    return f"{__salt__['pgcontent.folder'](here)}/restored.json"


def _record(here: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = __salt__["pgcluster.read_json"](_record_path(here)) or {}
    return found


def _write(here: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    __salt__["pgcluster.write_json"](_record_path(here), record)


def _lap(seconds: dict[str, float], step: str, begun: float) -> None:
    seconds[step] = round(time.monotonic() - begun - sum(seconds.values()), 2)
