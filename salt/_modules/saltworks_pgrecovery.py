"""A restored copy of this machine's cluster: recovered on a socket of its own, and promoted.

Nobody else has heard of it until it is stopped and started as what it is to be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgrecovery"

__salt__: dict[str, Any]

#: A server may take so long to start, and to stop, in seconds.
START_SECONDS, STOP_SECONDS = 180, 90

#: Slowest recovery that is reckoned with, in bytes of the cluster a second, and what is added for
#: the WAL, of which nobody knows beforehand how much there is.
SLOW, REPLAY_SECONDS = 10 << 20, 7200

#: What a restore leaves in postgresql.auto.conf: a standby copied from it would stop there, too.
LEFT = (
    "restore_command", "recovery_target_time", "recovery_target_action",
    "recovery_target_timeline", "recovery_target_inclusive",
)  # fmt: skip

#: One-time keys were handed out since: given out again, messages cannot be decrypted.
USED_UP = "e2e_one_time_keys_json"


def __virtual__() -> str:
    return __virtualname__


def seconds(size: int) -> float:
    """How long it may take at most to go through a cluster of so many bytes."""
    return size / SLOW


@contextlib.contextmanager
def serving(here: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The copy runs within the block, on a socket of its own.

    :param here: see ``pgbackrest.settings``.
    :param size: of the cluster in bytes.
    :returns: ``here`` with that socket.
    :raises CommandExecutionError: it does not start or stop, or the block fails; with its log.
    """
    socket = tempfile.mkdtemp(prefix="saltworks-pg-")
    log = f"{here['data']}.log"
    options = (
        f"-c config_file={here['etc']}/postgresql.conf -c listen_addresses='' "
        # No standby is there that a commit could wait for.
        f"-c unix_socket_directories={socket} -c hot_standby=on -c synchronous_standby_names=''"
    )
    try:
        if os.geteuid() == 0:
            entry = __salt__["pgcluster.account"](here["os_user"])
            os.chown(socket, entry.pw_uid, entry.pw_gid)
            with open(log, "w", encoding="utf-8"):
                os.chown(log, entry.pw_uid, entry.pw_gid)
        try:
            bound = int(START_SECONDS + seconds(size))
            words = ["-o", options, "-l", log, "-w", "-t", str(bound), "start"]
            __salt__["pgcluster.control"](here, words, bound + 30, "starting the copy")
            yield {**here, "socket": socket}
            words = ["-m", "fast", "-w", "-t", "120", "stop"]
            __salt__["pgcluster.control"](here, words, 150, "stopping the copy")
        except CommandExecutionError as problem:
            raise CommandExecutionError(f"{problem} Its log ends with:\n{_end(log)}") from None
        finally:
            stop(here)
    finally:
        shutil.rmtree(socket, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(log)


def stop(here: Mapping[str, Any]) -> None:
    """No server runs in the data folder; one that was left there is stopped at once.

    :param here: see ``pgbackrest.settings``.
    :raises CommandExecutionError: it runs on.
    """
    if __salt__["pgcluster.condition"](here["data"]) == "gone":
        return
    words = ["-m", "immediate", "-w", "-t", str(STOP_SECONDS), "stop"]
    what = f"stopping the server in {here['data']}"
    __salt__["pgcluster.control"](here, words, STOP_SECONDS + 30, what)


def reached(there: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Wait until recovery stands at its target.

    :param there: of :func:`serving`.
    :param size: of the cluster in bytes.
    :returns: ``reached``, the time of the last commit in it.
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

    bound = REPLAY_SECONDS + seconds(size)
    then = "There is much WAL between the backup and that time."
    row = __salt__["pgcluster.wait_until"](
        state, bound, "recovery to the time asked for", then, 0.2
    )
    return {"reached": row[1]}


def promote(there: Mapping[str, Any], database: str) -> dict[str, Any]:
    """The copy becomes a primary that nobody has heard of yet, and is made fit for use.

    :param there: of :func:`serving`.
    :param database: Synapse's.
    :returns: ``one_time_keys``, how many were dropped.
    :raises CommandExecutionError: it does not.
    """
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


def _end(log: str) -> str:
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-12:])
    return ""
