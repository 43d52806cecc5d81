"""Backups of this machine's PostgreSQL by pgBackRest: what there is, one more, one restored.

All that is said of the cluster and its repository is in the settings that the formula wrote; keys
and passphrase are in pgBackRest's own file, and in no argument.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgbackrest"

__salt__: dict[str, Any]

#: Written by the formula.
SETTINGS = "/etc/saltworks/pgbackrest.json"

#: Slowest restore that is reckoned with, bytes a second: bounds grow with the size.
SLOW = 10 << 20

#: Room beside what a restore takes: WAL, and what the server writes.
ROOM_BYTES = 1 << 30

#: How long the store may take to have a segment of WAL, and the program to say what there is.
ARCHIVED_SECONDS, REPORT_SECONDS = 120, 420

#: How long pgBackRest may take to make a stanza, and to see one segment arrive.
CHECK_SECONDS = 180


def __virtual__() -> str:
    return __virtualname__


def settings(path: str = SETTINGS) -> dict[str, Any]:
    """What the formula wrote; with it all that ``pgcluster.locate`` takes.

    :raises CommandExecutionError: the formula was not applied here.
    """
    found: dict[str, Any] | None = __salt__["pgcluster.read_json"](path)
    if not found:
        raise CommandExecutionError(
            f"{path} is not there: no backups are made from this machine; apply its role"
        )
    return found


def report(path: str = SETTINGS) -> dict[str, Any]:
    """What this machine's server and the store say.

    :returns: ``server`` and ``store``, each with ``error`` when it does not answer; ``keep_full``,
        ``hour`` and ``full_days`` as set.

    CLI Example:

    .. code-block:: bash

        salt database pgbackrest.report
    """
    here = settings(path)
    said = _program(here, path, "report", REPORT_SECONDS)
    return {**said, **{key: here[key] for key in ("keep_full", "hour", "full_days")}}


def backup(type: str = "diff", path: str = SETTINGS) -> dict[str, Any]:
    """A backup now, of this machine's server, which must be the primary.

    :param type: ``full``, ``diff`` or ``incr``.
    :returns: ``taken`` (its label), ``type``, ``bytes``, ``stored``, ``seconds``.
    :raises CommandExecutionError: it is no primary, another runs, or the store fails.

    CLI Example:

    .. code-block:: bash

        salt database pgbackrest.backup full
    """
    if type not in ("full", "diff", "incr"):
        raise CommandExecutionError(f"{type!r} is no type of backup: full, diff or incr")
    here = settings(path)
    return _program(here, path, type, here["seconds"] + REPORT_SECONDS)


def create(path: str = SETTINGS) -> None:
    """The store gets to know this cluster, and a segment of WAL is seen to arrive there.

    :raises CommandExecutionError: with what pgBackRest says.
    """
    here = settings(path)

    def created() -> bool:
        try:
            command(here, ["stanza-create"], CHECK_SECONDS)
        except CommandExecutionError as problem:
            if "unable to acquire lock" not in str(problem):
                raise
            return False
        return True

    # A server that archives already tries again and again, in vain until now, and holds the lock.
    then = "Another pgBackRest is at work on this machine: see /var/log/pgbackrest."
    __salt__["pgcluster.wait_until"](created, CHECK_SECONDS, "pgBackRest's lock", then, 0.2)

    def checked() -> bool:
        try:
            command(here, ["check"], CHECK_SECONDS)
        except CommandExecutionError as problem:
            if "must contain pgbackrest" not in str(problem):
                raise
            return False
        return True

    # Patroni reloads PostgreSQL on its own time.
    then = "Its archive_command is another one: reload what runs it, and see its log."
    what = "PostgreSQL to archive by pgBackRest"
    __salt__["pgcluster.wait_until"](checked, CHECK_SECONDS, what, then, 0.5)


def mark(path: str = SETTINGS) -> dict[str, Any]:
    """A point in the WAL, with the content around it, for a copy to be compared with.

    :returns: see ``pgproof.bracket``; its WAL is in the store.
    :raises CommandExecutionError: the store did not get it in time.
    """
    here = settings(path)
    around: dict[str, Any] = __salt__["pgproof.bracket"](here, here["database"])
    archived(here, around["segment"])
    return around


def archived(here: Mapping[str, Any], segment: str, seconds: float = ARCHIVED_SECONDS) -> None:
    """Wait until the store has a segment of WAL.

    :param here: see :func:`settings`.
    :param segment: its name.
    :raises CommandExecutionError: after the bound; says what archiving fails of.
    """
    there = __salt__["pgcluster.connection"](here)
    asked = (
        "SELECT json_build_object('there', "
        f"(SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name = '{segment}.done'), "
        "'last', left(last_archived_wal, 24), 'failed', last_failed_wal, "
        "'mode', current_setting('archive_mode')) FROM pg_stat_archiver;"
    )

    def state() -> dict[str, Any]:
        row: dict[str, Any] = __salt__["pgcluster.sql"](there, asked, what="the archiver")[0]
        return row

    def done() -> bool:
        row = state()
        if row["mode"] == "off":
            raise CommandExecutionError(
                "archive_mode is off: nothing is archived; restart PostgreSQL, which has it on"
            )
        return bool(row["there"]) or (row["last"] or "") >= segment

    __salt__["pgcluster.wait_until"](
        done,
        seconds,
        f"{segment} to be in the store",
        lambda: f"Archiving: {state()}; see /var/log/pgbackrest and salt-run backup.status",
        0.1,
    )


def verify(
    label: str,
    bytes: int,
    around: Mapping[str, Any] | None = None,
    path: str = SETTINGS,
    amcheck_seconds: float = 3600,
) -> dict[str, Any]:
    """Restore a backup into a server of its own, look at it, and remove it.

    The server listens on a socket that nobody else is let in by, below ``scratch``.

    :param label: the backup's.
    :param bytes: of the cluster in it; room for them is looked for before anything is done.
    :param around: of :func:`mark`: recovery goes on to that point, and the content is compared.
        Without it recovery ends where the backup ends.
    :param amcheck_seconds: for the check of all its tables and indexes.
    :returns: ``good``, ``why``, ``seconds``, ``restore_seconds``, ``compared`` (measures),
        ``amcheck``.
    :raises CommandExecutionError: it could not be tried: no room, or another run is at work.
    """
    here = settings(path)
    directory = here["scratch"]
    os.makedirs(directory, mode=0o755, exist_ok=True)
    begun = time.monotonic()
    with __salt__["pgcluster.held"](directory, f"verifying {label}"):
        __salt__["pgscratch.sweep"](directory, here)
        need_room(directory, bytes)
        bound = 300 + bytes / SLOW
        point, along = (str(around["point"]), "latest") if around else ("", "current")

        def fill(scratch: str) -> None:
            words = ["restore", f"--set={label}", f"--pg1-path={scratch}/data", "--type=none"]
            words += [f"--tablespace-map-all={scratch}/tablespaces"]
            command(here, words, bound)

        # Not by the spool, which may be a running standby's at the same time.
        fetch = (
            f"pgbackrest --config={here['config']} --stanza={here['stanza']} --no-archive-async "
            f'--pg1-path={directory}/scratch/data archive-get %f "%p"'
        )
        try:
            with __salt__["pgscratch.recovered"](
                directory, point, here, fill, fetch, bound, timeline=along
            ) as copy:
                seen = _look(copy, here["database"], around, amcheck_seconds)
        except CommandExecutionError as problem:
            seen = {"good": False, "why": str(problem)}
    return {**seen, "seconds": round(time.monotonic() - begun, 1)}


def need_room(directory: str, size: int) -> None:
    """Refuse what would fill the disk.

    :raises CommandExecutionError: says how much is missing.
    """
    need = size * 11 // 10 + ROOM_BYTES
    free = __salt__["pgcluster.free_bytes"](directory)
    if free < need:
        raise CommandExecutionError(
            f"{directory}: {free >> 20} MiB free, {need >> 20} MiB needed to restore there; make "
            "room, or verify on another machine. Nothing was changed"
        )


def command(here: Mapping[str, Any], words: Sequence[str], seconds: float) -> str:
    """pgBackRest's answer, as the cluster's account.

    :param here: see :func:`settings`.
    :raises CommandExecutionError: with what it says.
    """
    options = [f"--config={here['config']}", f"--stanza={here['stanza']}"]
    options += ["--log-level-console=off", "--log-level-stderr=error"]
    answer: str = __salt__["pgcluster.run"](
        ["pgbackrest", *options, *words],
        os_user=here["os_user"],
        timeout=seconds,
        what=f"pgBackRest {words[0]}",
    )
    return answer


def _look(
    copy: Mapping[str, Any], database: str, around: Mapping[str, Any] | None, seconds: float
) -> dict[str, Any]:
    """The verdict on a restored copy.

    :raises CommandExecutionError: it is damaged.
    """
    value: dict[str, Any] = {}
    wrong: list[str] = []
    if around:
        there = __salt__["pgcluster.connection"](copy, database)
        value = __salt__["synapse_fingerprint.take"](
            there, only=list(around["before"]), upto=around["upto"]
        )
        wrong = __salt__["pgproof.unproven"](around["before"], around["after"], value)
    checked = {} if wrong else __salt__["pgproof.amcheck"](copy, database, seconds)
    done = "restored and compared" if around else "restored to its end"
    done += ", all its pages read" if checked.get("done") else f" ({checked.get('why')})"
    return {
        "good": not wrong,
        "why": "; ".join(wrong) or done,
        "restore_seconds": copy["seconds"],
        "compared": len(value),
        "amcheck": checked,
    }


def _program(here: Mapping[str, Any], path: str, word: str, seconds: float) -> dict[str, Any]:
    """What the formula's program answers."""
    try:
        done = subprocess.run(
            ["/usr/bin/python3", here["program"], path, word],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            **__salt__["pgcluster.identity"](here["os_user"]),
        )
        said: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(f"{word}: not done after {seconds:g} s, and stopped") from None
    except ValueError:
        raise CommandExecutionError(f"{here['program']} {word}: {done.stderr[-800:]}") from None
    if "error" in said:
        raise CommandExecutionError(said["error"])
    return said
