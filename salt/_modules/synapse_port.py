"""Synapse's database goes from SQLite to PostgreSQL, in one pass.

    prepare  live: the target is empty and has the release's schema; the program is loaded
    port     in the window: one pass, sequences, the user directory queued, all rows compared
    reopen   the way back: the SQLite file is Synapse's again

What runs is ``formulas/synapse/files/port.py``, with the release's own Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_port"

__salt__: dict[str, Any]

#: Of what was ported, and of the program that waits.
FOLDER = "/var/lib/saltworks/postgres"

PROGRAM = "salt://synapse/files/port.py"


def __virtual__() -> str:
    return __virtualname__


def prepare(
    config: str, release: str, sqlite: str, user: str, timeout: float = 600
) -> dict[str, Any]:
    """Have an empty target of the release's schema, and the program waiting for its word.

    Whatever another pass has left in the target goes.

    :param config: Synapse's upcoming configuration, which names the target.
    :param release: the release's folder.
    :param sqlite: Synapse's SQLite file, which is only read.
    :param user: Synapse's account.
    :param timeout: seconds for making the schema.
    :returns: ``changed``.
    :raises CommandExecutionError: when the target cannot be reached or made.
    """
    run = _runner(config, release, sqlite, user)
    pending = (__salt__["synapse_db.schema"](connection=_sqlite(sqlite)) or {}).get("pending")
    if pending:
        raise CommandExecutionError(
            f"{sqlite}: background updates still run ({', '.join(pending[:5])}): wait for their "
            "end (synapse_db.schema), then run the milestone again"
        )
    _call_off()
    changed = run("stage") != "prepared"
    if changed:
        run("clear")
        __salt__["synapse_db.run_update"](config, release, user, False, timeout)
        run("mark")
    _warm(config, release, sqlite, user)
    return {"changed": changed}


def port(
    config: str, release: str, sqlite: str, user: str, timeout: float = 3600
) -> dict[str, Any]:
    """One pass, with Synapse stopped, and the proof that all has arrived.

    :param config: Synapse's upcoming configuration, which names the target.
    :param release: the release's folder.
    :param sqlite: Synapse's SQLite file; nobody but root may write it afterwards.
    :param user: Synapse's account.
    :param timeout: seconds.
    :returns: ``tables``, ``rows``, ``dropped`` (rows with a NUL, which PostgreSQL cannot
        keep), ``seconds`` and ``changed``.
    :raises CommandExecutionError: when it fails, or a table differs.
    """
    # A program that waits looks for itself, when it begins; to ask before costs people's time.
    if not _waiting():
        stage = _runner(config, release, sqlite, user)("stage")
        if stage == "ported":
            _close(sqlite)
            return {**recorded(), "changed": False}
        if stage != "prepared":
            raise CommandExecutionError(
                f"the target is {stage}, not freshly prepared, and a second pass into it would "
                "lose changes: run the milestone again, it prepares it anew"
            )
    done = _go(config, release, sqlite, user, timeout)
    if done["different"]:
        raise CommandExecutionError(
            f"{sqlite}: after the pass these tables differ: {'; '.join(done['different'])}. The "
            "file is untouched; the next run prepares the target anew"
        )
    record = {**done, "when": __salt__["pgcluster.now"]()}
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    __salt__["pgcluster.write_json"](f"{FOLDER}/port.json", record)
    _close(sqlite)
    return {**record, "changed": True}


def reopen(sqlite: str, user: str) -> bool:
    """The SQLite file is Synapse's again; a program that waits is called off.

    :param sqlite: the file.
    :param user: Synapse's account.
    """
    _call_off()
    entry = __salt__["pgcluster.account"](user)
    _own(sqlite, entry.pw_uid, entry.pw_gid, 0o600)
    return True


def recorded() -> dict[str, Any]:
    """What :func:`port` recorded; empty if it never did.

    CLI Example:

    .. code-block:: bash

        salt synapse synapse_port.recorded
    """
    value: dict[str, Any] = __salt__["pgcluster.read_json"](f"{FOLDER}/port.json") or {}
    return value


def _runner(config: str, release: str, sqlite: str, user: str) -> Any:
    def run(action: str) -> str:
        answer = __salt__["pgcluster.run"](
            _command(release, action, config, sqlite),
            os_user=user,
            timeout=120,
            what=f"the target of {config}",
        )
        return str(_said(answer)["stage"])

    return run


def _command(release: str, action: str, config: str, sqlite: str) -> list[str]:
    program = __salt__["cp.cache_file"](PROGRAM)
    if not program:
        raise CommandExecutionError(f"{PROGRAM} cannot be fetched; is the salt-master up?")
    # Synapse's account reads no file of the minion's cache.
    with open(program, encoding="utf-8") as file:
        return [f"{release}/bin/python", "-c", file.read(), action, config, sqlite]


def _warm(config: str, release: str, sqlite: str, user: str) -> None:
    """Start the program with all that takes time loaded; it waits in a process of its own."""
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    fifo, log = f"{FOLDER}/port.fifo", f"{FOLDER}/port.log"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fifo)
    os.mkfifo(fifo, 0o600)
    # Held open for both by the program itself, so that neither end waits for the other.
    handle = os.open(fifo, os.O_RDWR)
    with open(log, "wb") as out:
        process = subprocess.Popen(
            _command(release, "wait", config, sqlite),
            stdin=handle,
            stdout=out,
            stderr=out,
            cwd="/",
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"},
            **__salt__["pgcluster.identity"](user),
        )
    os.close(handle)
    __salt__["pgcluster.write_json"](f"{FOLDER}/port.pid", {"pid": process.pid, "log": log})
    __salt__["pgcluster.wait_until"](
        lambda: _words(log) or process.poll() is not None, 60, "the program to load", f"See {log}."
    )
    if process.poll() is not None:
        raise CommandExecutionError(f"synapse_port_db cannot be loaded: {_tail(log)}")


def _go(config: str, release: str, sqlite: str, user: str, timeout: float) -> dict[str, Any]:
    """Give the waiting program its word, and wait for what it says at its end."""
    if not _waiting():
        # The machine was started anew since: load it now.
        _warm(config, release, sqlite, user)
    row = _waiting()
    with open(f"{FOLDER}/port.fifo", "w", encoding="utf-8") as fifo:
        fifo.write("go\n")
    try:
        __salt__["pgcluster.wait_until"](
            lambda: not _runs(row["pid"]) or len(_words(row["log"])) > 1,
            timeout,
            "synapse_port_db",
            f"See {row['log']}",
            0.05,
        )
    finally:
        said = _words(row["log"])
        _call_off()
    if len(said) < 2:
        raise CommandExecutionError(f"synapse_port_db failed: {_tail(row['log'])}")
    return said[1]


def _waiting() -> dict[str, Any]:
    """The program that :func:`_warm` started, if it lives still."""
    row: dict[str, Any] = __salt__["pgcluster.read_json"](f"{FOLDER}/port.pid") or {}
    return row if row and _runs(row["pid"]) else {}


def _call_off() -> None:
    if row := _waiting():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(row["pid"], signal.SIGKILL)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{FOLDER}/port.pid")


def _runs(pid: int) -> bool:
    """Whether that process is ours and lives: pids come again."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"wait" in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _words(log: str) -> list[dict[str, Any]]:
    with open(log, encoding="utf-8", errors="replace") as file:
        return [_said(line) for line in file if line.startswith("saltworks ") and "\n" in line]


def _said(text: str) -> dict[str, Any]:
    line = next(row for row in text.splitlines() if row.startswith("saltworks "))
    value: dict[str, Any] = json.loads(line.partition(" ")[2])
    return value


def _tail(log: str) -> str:
    """The end of what went wrong; what the program says of its progress comes after that."""
    with open(log, encoding="utf-8", errors="replace") as file:
        _, trace, text = file.read().rpartition("Traceback (most recent call last)")
    return (trace + text)[:1500].strip() if trace else text[-1500:].strip()


def _close(sqlite: str) -> None:
    """Nobody but root writes to what Synapse has left."""
    _own(sqlite, 0, 0, 0o400)


def _own(path: str, user: int, group: int, mode: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, user, group)
    os.chmod(path, mode)


def _sqlite(path: str) -> Mapping[str, Any]:
    return {"engine": "sqlite3", "path": path}
