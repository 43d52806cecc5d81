"""Synapse moves to another machine: one end stops it for good, the other starts it.

The order, and the way back, are in ``saltworks.switch``; the front door must be closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import os
import pwd
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_move"

__salt__: dict[str, Any]

#: Name of the SQLite copy in the handover folder.
COPY = "homeserver.db"

#: Beside homeserver.yaml: what Synapse will start with next, and what it started with before.
UPCOMING, PREVIOUS = "upcoming.yaml", "previous.yaml"

#: One step at a time: one whose run has died goes on, and would start Synapse after the way
#: back stopped it. How long it is waited for, in seconds.
LOCK, LOCK_SECONDS = "/run/saltworks-move.lock", 90


def __virtual__() -> str:
    return __virtualname__


def leave(
    service: str,
    ports: list[int],
    drain_timeout: float = 5,
    sqlite: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Let the requests in flight end, then stop Synapse here, also for after a reboot.

    :param service: unit name without suffix.
    :param ports: ports whose established connections are requests in flight.
    :param drain_timeout: bound in seconds for those requests.
    :param sqlite: ``{"source": the database file, "directory": where its copy goes}``.
    :returns: the seconds that ``drain``, ``stop`` and ``copy`` took.
    :raises CommandExecutionError: when requests did not end; nothing was stopped.
    """
    taken: dict[str, float] = {}
    with _alone():
        if __salt__["service.status"](service):
            taken["drain"] = __salt__["door.drain"](ports, timeout=drain_timeout)["seconds"]
        begun = time.monotonic()
        _systemctl("disable", "--now", f"{service}.service")
        taken["stop"] = round(time.monotonic() - begun, 3)
        if sqlite:
            begun = time.monotonic()
            _copy(sqlite["source"], sqlite["directory"])
            taken["copy"] = round(time.monotonic() - begun, 3)
    return taken


def arrive(
    service: str,
    url: str,
    pulls: Sequence[Mapping[str, str]],
    sqlite: Mapping[str, str] | None = None,
    config: str | None = None,
    timeout: float = 60,
    enable: bool = False,
) -> dict[str, float]:
    """Fetch what is still missing and start Synapse here.

    If it runs already nothing is fetched: it has what there was.

    :param service: unit name without suffix.
    :param url: base URL that must answer afterwards.
    :param pulls: arguments of ``transfer.pull``, one mapping a tree.
    :param sqlite: ``{"directory": where the fetched copy is, "destination": the database
        file, "user": its owner}``.
    :param config: path of its configuration, when the upcoming one beside it is to take its place
        first; see :func:`put_back`.
    :param timeout: bound in seconds for the first answer.
    :param enable: also for after a reboot. Not before the move is recorded: a machine that
        is given up and comes back must not start a second Synapse.
    :returns: the seconds that ``pull``, ``start`` and ``answer`` took.
    :raises CommandExecutionError: it cannot be fetched, started, or does not answer.
    """
    taken: dict[str, float] = {}
    with _alone():
        if not __salt__["service.status"](service):
            begun = time.monotonic()
            for row in pulls:
                __salt__["transfer.pull"](**row)
            if sqlite:
                _put_in_place(**sqlite)
            taken["pull"] = round(time.monotonic() - begun, 3)
        begun = time.monotonic()
        if config:
            _take_up(config)
        _systemctl(*(["enable", "--now"] if enable else ["start"]), f"{service}.service")
        taken["start"] = round(time.monotonic() - begun, 3)
        taken["answer"] = __salt__["homeserver.healthy"](url, timeout)["seconds"]
    return taken


def stop(service: str) -> bool:
    """Synapse does not run here, nor after a reboot. For the way back.

    :param service: unit name without suffix.
    """
    with _alone():
        _systemctl("disable", "--now", f"{service}.service")
    return True


def put_back(config: str) -> bool:
    """The configuration before the one that :func:`arrive` took up is in use again.

    :param config: path of the one in use.
    :returns: False when nothing was taken up.
    """
    previous = os.path.join(os.path.dirname(config), PREVIOUS)
    if not os.path.exists(previous):
        return False
    os.replace(previous, config)
    return True


def _take_up(config: str) -> None:
    folder = os.path.dirname(config)
    upcoming = os.path.join(folder, UPCOMING)
    if not os.path.exists(upcoming):
        raise CommandExecutionError(
            f"{upcoming} is not there; apply synapse.prepared to this machine first"
        )
    if not filecmp.cmp(upcoming, config, shallow=False):
        _copied(config, os.path.join(folder, PREVIOUS))
        _copied(upcoming, config)


def _copied(source: str, destination: str) -> None:
    temporary = f"{destination}.writing"
    shutil.copy2(source, temporary)
    status = os.stat(source)
    os.chown(temporary, status.st_uid, status.st_gid)
    os.replace(temporary, destination)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    end = time.monotonic() + LOCK_SECONDS
    with open(LOCK, "w", encoding="ascii") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > end:
                raise CommandExecutionError(
                    f"another step of a move has held {LOCK} for {LOCK_SECONDS} s; see "
                    "saltutil.running on this machine, and run this again once it has ended"
                )
            time.sleep(0.1)
        yield


def _systemctl(*args: str) -> None:
    done = subprocess.run(
        ["systemctl", *args], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise CommandExecutionError(
            f"systemctl {' '.join(args)} failed: {done.stderr.strip()}; see journalctl -xe"
        )


def _copy(source: str, directory: str) -> None:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, COPY)
    if os.path.exists(path):
        os.unlink(path)
    old, new = sqlite3.connect(f"file:{source}?mode=ro", uri=True), sqlite3.connect(path)
    try:
        old.backup(new)
    finally:
        new.close()
        old.close()


def _put_in_place(directory: str, destination: str, user: str) -> None:
    temporary = f"{destination}.arriving"
    with open(os.path.join(directory, COPY), "rb") as old, open(temporary, "wb") as new:
        while block := old.read(1 << 20):
            new.write(block)
        new.flush()
        os.fsync(new.fileno())
    entry = pwd.getpwnam(user)
    os.chown(temporary, entry.pw_uid, entry.pw_gid)
    os.chmod(temporary, 0o600)
    # Left by a Synapse of an earlier try; SQLite would roll it back into the new file.
    for companion in ("-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(destination + companion)
    os.replace(temporary, destination)
