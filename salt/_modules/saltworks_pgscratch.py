"""A throw-away PostgreSQL made of a base backup and its WAL, up to a named point.

It listens on a unix socket only, in a folder with a name nobody knows beforehand, takes
little memory, and is stopped and deleted at the end, whatever happened in between. What
a killed run left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgscratch"

__salt__: dict[str, Any]

#: Slowest disk that is reckoned with, bytes a second: bounds grow with the copy's size.
SLOW = 20 << 20

PORT = 54329

CONFIGURATION = """\
listen_addresses = ''
port = {port}
unix_socket_directories = '{socket}'
hba_file = '{scratch}/pg_hba.conf'
ident_file = '{scratch}/pg_ident.conf'
shared_buffers = 128MB
max_connections = 30
max_worker_processes = 4
max_wal_senders = 0
max_prepared_transactions = 64
max_locks_per_transaction = 256
max_wal_size = 4GB
maintenance_work_mem = 128MB
autovacuum = off
jit = off
archive_mode = off
hot_standby = off
fsync = {fsync}
full_page_writes = {fsync}
lc_messages = 'C'
log_min_messages = log
restore_command = '{fetch}'
{target}
recovery_target_action = 'promote'
recovery_target_timeline = '{timeline}'
"""


def __virtual__() -> str:
    return __virtualname__


@contextlib.contextmanager
def opened(
    directory: str,
    point: str,
    cluster: Mapping[str, Any],
    login: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Restore to ``point``, hand out the running copy, remove it.

    :param directory: the backup's folder with ``base`` and ``wal``.
    :param point: name of the restore point.
    :param cluster: the live cluster, for its programs and its account.
    :param login: account of the machine to role of the database, for those who may enter
        beside the superuser.
    :param timeout: seconds for recovery; reckoned from the size when not given.
    :returns: a context manager giving a cluster (see ``pgcluster.locate``) with
        ``seconds``, ``copy_seconds`` and ``bytes``.
    :raises CommandExecutionError: when it does not come up, with the end of its log.
    """
    base = f"{directory}/base"
    size = __salt__["pgcluster.tree_bytes"](base)
    size += __salt__["pgcluster.tree_bytes"](f"{directory}/wal")
    bound = timeout or 120 + size / SLOW

    def copy(scratch: str) -> None:
        __salt__["pgcluster.run"](
            ["cp", "-a", "--reflink=auto", base, f"{scratch}/data"],
            os_user=cluster["os_user"],
            timeout=bound,
            what=f"copying {base}",
        )
        _relink(directory, scratch, cluster["os_user"], bound)

    fetch = f'cp "{directory}/wal/%f" "%p"'
    with recovered(directory, point, cluster, copy, fetch, bound, login=login) as at:
        yield {**at, "bytes": size}


@contextlib.contextmanager
def recovered(
    directory: str,
    point: str,
    cluster: Mapping[str, Any],
    fill: Callable[[str], None],
    fetch: str,
    bound: float,
    login: Mapping[str, str] | None = None,
    timeline: str = "current",
) -> Iterator[dict[str, Any]]:
    """A data folder from wherever, recovered in a server that is removed at the end.

    :param directory: folder for it, ours alone.
    :param point: name of the restore point; empty: the end of the backup.
    :param cluster: as for :func:`opened`.
    :param fill: puts the data folder into the folder it is given, as ``data``.
    :param fetch: ``restore_command``.
    :param bound: seconds for recovery.
    :param login: as for :func:`opened`.
    :param timeline: ``recovery_target_timeline``.
    :returns: as :func:`opened`, but for ``bytes``.
    :raises CommandExecutionError: as :func:`opened`.
    """
    scratch = f"{directory}/scratch"
    sweep(directory, cluster)
    started = time.monotonic()
    socket = tempfile.mkdtemp(prefix="saltworks-pg-")
    try:
        __salt__["pgcluster.make_directory"](scratch, cluster["os_user"])
        __salt__["pgcluster.write_json"](f"{directory}/scratch.json", {"socket": socket})
        fill(scratch)
        copied = time.monotonic() - started
        target = f"recovery_target_name = '{point}'" if point else "recovery_target = 'immediate'"
        values = {"target": target, "fetch": fetch, "timeline": timeline}
        _prepare(scratch, socket, point, cluster, login or {}, values)
        at = {
            "bindir": cluster["bindir"],
            "os_user": cluster["os_user"],
            "data": f"{scratch}/data",
            "socket": socket,
            "port": PORT,
        }
        _start(at, scratch, point or "the end of the backup", bound)
        yield {
            **at,
            "seconds": round(time.monotonic() - started, 2),
            "copy_seconds": round(copied, 2),
        }
    finally:
        sweep(directory, cluster)


def durable(at: Mapping[str, Any], on: bool = True) -> None:
    """Make the copy write as carefully as a live server, so that its times mean something."""
    path = f"{at['data']}/postgresql.conf"
    with open(path, "a", encoding="utf-8") as file:
        value = "on" if on else "off"
        file.write(f"fsync = {value}\nfull_page_writes = {value}\nautovacuum = {value}\n")
    __salt__["pgcluster.control"](at, ["reload"], 30, "reloading the scratch server")


def sweep(directory: str, cluster: Mapping[str, Any]) -> bool:
    """Stop and delete what is left of a scratch server.

    :returns: whether there was something.
    """
    scratch, record = f"{directory}/scratch", f"{directory}/scratch.json"
    known = __salt__["pgcluster.read_json"](record)
    if not os.path.isdir(scratch) and not known:
        return False
    at = {**cluster, "data": f"{scratch}/data"}
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        words = ["-m", "immediate", "-w", "-t", "60", "stop"]
        with contextlib.suppress(CommandExecutionError):
            __salt__["pgcluster.control"](at, words, 90, "stopping the scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    if known and os.path.basename(known["socket"]).startswith("saltworks-pg-"):
        shutil.rmtree(known["socket"], ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(record)
    return True


def _prepare(
    scratch: str,
    socket: str,
    point: str,
    cluster: Mapping[str, Any],
    login: Mapping[str, str],
    values: Mapping[str, str],
) -> None:
    if point and not re.fullmatch(r"[A-Za-z0-9_.:-]{1,63}", point):
        raise CommandExecutionError(f"{point!r}: a restore point is named by A-Z a-z 0-9 _ . : -")
    user = cluster["os_user"]
    entry = __salt__["pgcluster.account"](user)
    # The folder may be crossed, as peer authentication lets in only who is named below.
    os.chmod(socket, 0o711)
    for name in ("standby.signal", "backup_manifest"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{scratch}/data/{name}")
    configuration = CONFIGURATION.format(
        port=PORT, socket=socket, scratch=scratch, fsync="off", **values
    )
    # A line break or quote in a role's name would be a line of its own here.
    roles = {a: r for a, r in login.items() if re.fullmatch(r"[A-Za-z0-9_.-]+", r)}
    if len(roles) != len(login):
        raise CommandExecutionError("a role of the database has a name that pg_hba.conf cannot say")
    hba = f'local all "{user}" peer map=scratch\n' + "".join(
        f'local all "{role}" peer map=scratch\n' for role in sorted(set(roles.values()))
    )
    ident = f'scratch {user} "{user}"\n' + "".join(
        f'scratch {account} "{role}"\n' for account, role in roles.items()
    )
    for path, text in {
        "data/postgresql.conf": configuration,
        "data/postgresql.auto.conf": "",
        "data/recovery.signal": "",
        "pg_hba.conf": hba,
        "pg_ident.conf": ident,
    }.items():
        with open(f"{scratch}/{path}", "w", encoding="utf-8") as file:
            file.write(text)
        if os.geteuid() == 0:
            os.chown(f"{scratch}/{path}", entry.pw_uid, entry.pw_gid)
    if os.geteuid() == 0:
        os.chown(socket, entry.pw_uid, entry.pw_gid)


def _relink(directory: str, scratch: str, user: str, bound: float) -> None:
    """Give the copy its own copies of tablespaces (base/pg_tblspc/<oid> are links)."""
    links = f"{scratch}/data/pg_tblspc"
    for oid in os.listdir(links) if os.path.isdir(links) else []:
        own = f"{scratch}/tablespace-{oid}"
        __salt__["pgcluster.run"](
            ["cp", "-a", "--reflink=auto", os.path.realpath(f"{links}/{oid}"), own],
            os_user=user,
            timeout=bound,
            what=f"copying the tablespace {oid}",
        )
        __salt__["pgcluster.run"](["ln", "-sfn", own, f"{links}/{oid}"], os_user=user)


def _start(at: Mapping[str, Any], scratch: str, point: str, bound: float) -> None:
    log = f"{scratch}/log"
    what = f"recovery to {point}"
    try:
        words = ["-l", log, "-w", "-t", str(int(bound)), "start"]
        __salt__["pgcluster.control"](at, words, bound + 30, what)
        # pg_ctl is content with a server that still recovers.
        state = __salt__["pgcluster.wait_until"](
            lambda: _ended(at["data"]),
            bound,
            what,
            "The disk may be slow: give a longer timeout.",
        )
        if state == "gone":
            raise CommandExecutionError(f"{what}: the scratch server gave up")
    except CommandExecutionError as problem:
        said = ""
        with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as file:
            said = "".join(file.readlines()[-15:])
        raise CommandExecutionError(
            f"the backup cannot be restored to {point!r} in {scratch}: {problem} "
            f"Its log ends with:\n{said}"
        ) from None


def _ended(data: str) -> str:
    state = str(__salt__["pgcluster.condition"](data))
    return state if state in ("ready", "gone") else ""
