"""A cluster of this machine put back as it was at a time, from its backups.

The data folder is kept aside, and a server restored beside it is recovered to the time on a socket
of its own, where it stops and is looked at. Only then it becomes a primary, on a new timeline, and
the machine's own. Until then whatever fails puts the old folder back, and the store never hears of
it; a call after a killed one does so first. Who uses the database must be kept out meanwhile, by
whoever conducts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgpitr"

__salt__: dict[str, Any]

#: A server may take so long to stop, and to start, in seconds.
STOP_SECONDS, START_SECONDS = 180, 180

#: Slowest recovery that is reckoned with, in bytes of the cluster a second, and what is added for
#: the WAL, of which nobody knows beforehand how much there is.
SLOW, REPLAY_SECONDS = 10 << 20, 7200

#: In place of a time.
LATEST = "latest"

#: What a restore leaves in postgresql.auto.conf: a standby copied from it would stop there, too.
LEFT = (
    "restore_command", "recovery_target_time", "recovery_target_action",
    "recovery_target_timeline", "recovery_target_inclusive",
)  # fmt: skip

#: One-time keys were handed out since: given out again, messages cannot be decrypted.
USED_UP = "e2e_one_time_keys_json"


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
        dropped), ``seconds`` of each step. Unchanged when this is what was done last.
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
        if record.get("step") == "serving" and record["target"] == target:
            return {**_finished(here, record), "changed": False}
        if record.get("step") == "begun":
            _put_back(here, record)
        source = {"target": target, "label": label, "timeline": timeline}
        return _restored(here, source, words, bytes)


def kept(path: str = "") -> dict[str, Any]:
    """What the last restore left: its record, and ``folders``, those that were kept aside."""
    here = _settings(path)
    parent, name = os.path.split(here["data"])
    folders = sorted(row for row in os.listdir(parent) if row.startswith(f"{name}.before-"))
    return {**_record(here), "folders": [f"{parent}/{row}" for row in folders]}


def forget(path: str = "") -> list[str]:
    """Finalize: delete the data folders that restores kept, and the record.

    :returns: the folders.
    :raises CommandExecutionError: a restore has not come to its end.
    """
    here = _settings(path)
    with __salt__["pgcluster.held"](__salt__["pgcontent.made_folder"](here), "forgetting"):
        if _record(here).get("step") == "begun":
            raise CommandExecutionError("a restore was cut off: run it again before this")
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
    if not os.path.isdir(f"{here['data']}/pg_tblspc"):
        raise CommandExecutionError(f"{here['data']} is no data folder: apply this machine's role")
    __salt__["pgbackrest.need_room"](parent, size)
    if os.listdir(f"{here['data']}/pg_tblspc"):
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
    before = _timeline(here, here["data"])
    record = {
        "step": "begun",
        "from": before,
        "kept": f"{here['data']}.before-{__salt__['pgcluster.stamp']()[:14]}",
        **source,
    }
    _lap(seconds, "archived", begun)
    _stop(here)
    _lap(seconds, "stopped", begun)
    _write(here, record)
    os.rename(here["data"], record["kept"])
    promoting = False
    try:
        __salt__["pgcluster.make_directory"](here["data"], here["os_user"])
        chosen = [f"--set={source['label']}", f"--target-timeline={source['timeline']}"]
        __salt__["pgbackrest.command"](here, ["restore", *chosen, *words], 300 + size / SLOW)
        _lap(seconds, "restored", begun)
        with _private(here, size) as there:
            record |= _recovered(there, size)
            _lap(seconds, "recovered", begun)
            promoting = True
            record |= _promoted(there, here["database"])
    except CommandExecutionError as problem:
        if promoting:
            # The store may have heard of the new timeline: only another restore gets past it.
            raise CommandExecutionError(
                f"restored to {target}, and not fit for use: {problem} Nothing serves now, and "
                f"what was before is in {record['kept']}. Call it again: it begins anew."
            ) from None
        _put_back(here, record)
        raise CommandExecutionError(
            f"not restored to {target}, the database as it was before serves again: {problem}"
        ) from None
    record |= {"to": _timeline(here, here["data"]), "step": "serving"}
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


@contextlib.contextmanager
def _private(here: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The restored server, on a socket of its own; stopped at the end."""
    socket = tempfile.mkdtemp(prefix="saltworks-pg-")
    log = f"{here['data']}.log"
    options = (
        f"-c config_file={here['etc']}/postgresql.conf -c listen_addresses='' "
        f"-c unix_socket_directories={socket} -c hot_standby=on"
    )
    try:
        if os.geteuid() == 0:
            entry = __salt__["pgcluster.account"](here["os_user"])
            os.chown(socket, entry.pw_uid, entry.pw_gid)
            with open(log, "w", encoding="utf-8"):
                os.chown(log, entry.pw_uid, entry.pw_gid)
        try:
            bound = int(START_SECONDS + size / SLOW)
            words = ["-o", options, "-l", log, "-w", "-t", str(bound), "start"]
            _pg_ctl(here, words, bound + 30, "starting the copy")
            yield {**here, "socket": socket}
            _pg_ctl(here, ["-m", "fast", "-w", "-t", "120", "stop"], 150, "stopping the copy")
        except CommandExecutionError as problem:
            raise CommandExecutionError(f"{problem} Its log ends with:\n{_end(log)}") from None
    finally:
        shutil.rmtree(socket, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)


def _recovered(there: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Wait until recovery stands at its target.

    :raises CommandExecutionError: it ended before, or took too long.
    """
    asked = (
        "SELECT json_build_array(CASE WHEN pg_is_in_recovery() THEN "
        "pg_get_wal_replay_pause_state() END, pg_last_xact_replay_timestamp(), "
        "pg_is_in_recovery());"
    )
    connection = __salt__["pgcluster.connection"](there)

    def state() -> Any:
        if __salt__["pgcluster.condition"](there["data"]) == "gone":
            raise CommandExecutionError("the copy gave up before it was at the time asked for.")
        row = __salt__["pgcluster.sql"](connection, asked, what="the state of recovery")[0]
        # To the end of the WAL it does not stand still: it is a primary then.
        return row if row[0] == "paused" or not row[2] else None

    bound = REPLAY_SECONDS + size / SLOW
    then = "There is much WAL between the backup and that time."
    row = __salt__["pgcluster.wait_until"](
        state, bound, "recovery to the time asked for", then, 0.2
    )
    return {"reached": row[1]}


def _promoted(there: Mapping[str, Any], database: str) -> dict[str, Any]:
    """The copy becomes a primary that nobody has heard of yet, and is made fit for use."""
    server = __salt__["pgcluster.connection"](there)
    __salt__["pgcluster.sql"](
        server,
        "SELECT to_json(CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume()::text END);",
        what="the end of recovery",
    )
    asked = "SELECT to_json(NOT pg_is_in_recovery());"
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgcluster.sql"](server, asked, what="the promotion")[0],
        START_SECONDS,
        "the promotion",
        "See the server's log.",
        0.1,
    )
    __salt__["pgcluster.sql"](
        server, "".join(f"ALTER SYSTEM RESET {name};\n" for name in LEFT), what="its settings"
    )
    inside = __salt__["pgcluster.connection"](there, database)
    table = __salt__["pgcluster.sql"](
        inside, f"SELECT to_json(to_regclass('{USED_UP}') IS NOT NULL);", what="its tables"
    )[0]
    if not table:
        return {"one_time_keys": 0}
    dropped = __salt__["pgcluster.sql"](
        inside, f"SELECT to_json(count(*)) FROM {USED_UP};\nTRUNCATE {USED_UP};", what=USED_UP
    )[0]
    return {"one_time_keys": dropped}


def _finished(here: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """It serves; for its user's answer."""
    __salt__["service.start"](here["unit"])
    __salt__["pgcluster.wait_until"](
        lambda: _serves(here),
        START_SECONDS,
        f"{here['unit']} to serve what was restored",
        f"What was before is in {record['kept']}; see journalctl -u {here['unit']}",
        0.2,
    )
    timeline = {"from": record["from"], "to": record["to"]}
    kept_ = {key: record[key] for key in ("target", "reached", "kept", "one_time_keys")}
    return {**kept_, "timeline": timeline}


def _put_back(here: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """The data folder of before is in its place again, and serves."""
    if os.path.isdir(record["kept"]):
        if __salt__["pgcluster.condition"](here["data"]) != "gone":
            with contextlib.suppress(CommandExecutionError):
                _pg_ctl(here, ["-m", "immediate", "-w", "stop"], 90, "stopping the copy")
        shutil.rmtree(here["data"], ignore_errors=True)
        os.rename(record["kept"], here["data"])
    os.unlink(_record_path(here))
    __salt__["service.start"](here["unit"])
    __salt__["pgcluster.wait_until"](
        lambda: _serves(here),
        START_SECONDS,
        f"{here['unit']} to serve as before",
        f"See journalctl -u {here['unit']}",
        0.2,
    )


def _serves(here: Mapping[str, Any]) -> bool:
    """Whether the server takes writes: Patroni has it a standby first."""
    there = __salt__["pgcluster.connection"](here)
    try:
        return bool(__salt__["pgcluster.sql"](there, "SELECT to_json(NOT pg_is_in_recovery());")[0])
    except CommandExecutionError:
        return False


def _stop(here: Mapping[str, Any]) -> None:
    __salt__["service.stop"](here["unit"])
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgcluster.condition"](here["data"]) == "gone",
        STOP_SECONDS,
        f"{here['unit']} to stop",
        f"Nothing else was done. See journalctl -u {here['unit']}",
        0.2,
    )


def _timeline(here: Mapping[str, Any], data: str) -> int:
    """By its control file, which is there when the server is not."""
    said = __salt__["pgcluster.run"](
        [f"{here['bindir']}/pg_controldata", data], os_user=here["os_user"], what="pg_controldata"
    )
    line = next(row for row in said.splitlines() if "Latest checkpoint's TimeLineID" in row)
    return int(line.split(":")[1])


def _pg_ctl(here: Mapping[str, Any], words: list[str], seconds: float, what: str) -> None:
    __salt__["pgcluster.run"](
        [f"{here['bindir']}/pg_ctl", "-D", here["data"], *words],
        os_user=here["os_user"],
        timeout=seconds,
        what=what,
    )


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


def _end(log: str) -> str:
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-12:])
    return ""
