"""The stream of WAL beside a base backup: a physical slot and ``pg_receivewal``.

Under systemd it is a real unit, so it comes back after a reboot; elsewhere (a test on a
machine without systemd) a plain process that is found again by its pid file.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgreceiver"

__salt__: dict[str, Any]

UNITS = "/etc/systemd/system"


def __virtual__() -> str:
    return __virtualname__


def start(directory: str, slot: str, cluster: Mapping[str, Any]) -> bool:
    """Stream the WAL of ``cluster`` into ``<directory>/wal``, and wait until it does.

    :param directory: the backup's folder.
    :param slot: name of the replication slot; made when it is missing.
    :param cluster: a complete cluster, see ``pgcluster.locate``.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when the stream does not begin within 30 s.
    """
    _checked(slot)
    if state(slot, cluster)["active"]:
        return False
    admin = __salt__["pgcluster.connection"](cluster)
    __salt__["pgcluster.sql"](
        admin,
        f"SELECT to_json(pg_create_physical_replication_slot('{slot}', true)::text) WHERE NOT "
        f"EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}');",
        what=f"the replication slot {slot}",
    )
    __salt__["pgcluster.make_directory"](f"{directory}/wal", cluster["os_user"])
    argv = [
        f"{cluster['bindir']}/pg_receivewal",
        f"--directory={directory}/wal",
        f"--slot={slot}",
        "--synchronous",
        "--status-interval=1",
        f"--host={cluster['socket']}",
        f"--port={cluster['port']}",
        f"--username={cluster['os_user']}",
        "--no-password",
    ]
    if _systemd():
        _unit(slot, argv, cluster["os_user"])
    else:
        _process(directory, argv, cluster["os_user"])
    __salt__["pgcluster.wait_until"](
        lambda: state(slot, cluster)["active"],
        30,
        f"pg_receivewal to stream from the slot {slot}",
        f"See {_log(directory, slot)}; pg_hba.conf needs `local replication all peer`.",
        0.1,
    )
    return True


def state(slot: str, cluster: Mapping[str, Any]) -> dict[str, Any]:
    """How the slot stands.

    :returns: ``exists``, ``active``, ``behind`` (bytes of WAL that the server keeps for
        it), ``lost`` (the server threw away WAL that it still needed).
    """
    admin = __salt__["pgcluster.connection"](cluster)
    rows = __salt__["pgcluster.sql"](
        admin,
        "SELECT json_build_object('exists', true, 'active', active, "
        "'behind', pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, "
        "'lost', wal_status = 'lost') "
        f"FROM pg_replication_slots WHERE slot_name = '{_checked(slot)}';",
        what=f"the replication slot {slot}",
    )
    gone = {"exists": False, "active": False, "behind": None, "lost": False}
    return rows[0] if rows else gone


def stop(directory: str, slot: str, cluster: Mapping[str, Any]) -> bool:
    """End the stream and drop the slot, so that the server keeps no WAL for it.

    :returns: whether something had to be done.
    :raises CommandExecutionError: when the slot stays in use for 30 s.
    """
    _checked(slot)
    unit = f"{UNITS}/{_unit_name(slot)}"
    done = False
    if _systemd() and os.path.exists(unit):
        _systemctl("disable", "--now", _unit_name(slot))
        os.unlink(unit)
        _systemctl("daemon-reload")
        done = True
    pid = _running(directory)
    if pid:
        os.kill(pid, signal.SIGTERM)
        done = True
    if not state(slot, cluster)["exists"]:
        return done
    __salt__["pgcluster.wait_until"](
        lambda: not state(slot, cluster)["active"],
        30,
        f"the slot {slot} to be free",
        "Something else streams from it: see pg_stat_replication.",
        0.1,
    )
    __salt__["pgcluster.sql"](
        __salt__["pgcluster.connection"](cluster),
        f"SELECT to_json(pg_drop_replication_slot('{slot}')::text);",
        what=f"dropping the slot {slot}",
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/receiver.pid")
    return True


def _checked(slot: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,50}", slot):
        raise CommandExecutionError(f"{slot!r}: a slot is named by a-z, 0-9 and _ only")
    return slot


def _systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


def _unit_name(slot: str) -> str:
    return f"saltworks-walreceiver-{slot}.service"


def _log(directory: str, slot: str) -> str:
    return f"`journalctl -u {_unit_name(slot)}`" if _systemd() else f"{directory}/receiver.log"


def _unit(slot: str, argv: list[str], os_user: str) -> None:
    text = (
        "[Unit]\n"
        f"Description=WAL for the backup {slot} (Synapse Saltworks)\n"
        "After=postgresql.service\n"
        "StartLimitIntervalSec=0\n\n"
        "[Service]\n"
        f"User={os_user}\n"
        f"ExecStart={' '.join(argv)}\n"
        "UMask=0077\n"
        "Restart=always\n"
        "RestartSec=1\n\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
    with open(f"{UNITS}/{_unit_name(slot)}", "w", encoding="utf-8") as out:
        out.write(text)
    _systemctl("daemon-reload")
    _systemctl("enable", _unit_name(slot))
    _systemctl("restart", _unit_name(slot))


def _systemctl(*argv: str) -> None:
    __salt__["pgcluster.run"](["systemctl", *argv], timeout=60, what=f"systemctl {' '.join(argv)}")


def _process(directory: str, argv: list[str], os_user: str) -> None:
    if _running(directory):
        return
    with open(f"{directory}/receiver.log", "ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            umask=0o077,
            start_new_session=True,
            **__salt__["pgcluster.identity"](os_user),
        )
    __salt__["pgcluster.write_json"](
        f"{directory}/receiver.pid", {"pid": process.pid, "started": _started(process.pid)}
    )


def _running(directory: str) -> int | None:
    """The pid of our receiver, if that very process still runs (pids come again)."""
    record = __salt__["pgcluster.read_json"](f"{directory}/receiver.pid")
    if not record or _started(record["pid"]) != record["started"]:
        return None
    return int(record["pid"])


def _started(pid: int) -> str | None:
    """Start time in clock ticks, field 22 of /proc/<pid>/stat (proc(5)); None: not running."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
