"""A PostgreSQL cluster of this machine: where it is, and one way to ask it anything.

Everything here speaks to the server as a *connection*: a plain mapping
``{"bindir", "os_user", "params"}``, where ``params`` are libpq's own names (host,
port, user, dbname, password, sslmode ...). Passwords travel in a service file of mode
0600 that lives as long as the command, never in an argument or in the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgcluster"

#: Unquoted in postgresql.conf and in a shell run by the server, hence narrow.
SAFE_PATH = re.compile(r"^/[A-Za-z0-9._/+-]+$")


_SERVER = """
SELECT json_build_object(
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'version', current_setting('server_version_num')::int,
  'databases', (SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn),
  'sizes', (SELECT json_object_agg(datname, pg_database_size(oid)) FROM pg_database),
  'bytes', (SELECT sum(pg_database_size(oid))::bigint FROM pg_database),
  'tablespaces', (SELECT coalesce(json_object_agg(oid, pg_tablespace_location(oid)), '{}')
                  FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''),
  'wal_level', current_setting('wal_level'),
  'max_wal_senders', current_setting('max_wal_senders')::int,
  'senders', (SELECT count(*) FROM pg_stat_replication),
  'max_slots', current_setting('max_replication_slots')::int,
  'slots', (SELECT count(*) FROM pg_replication_slots),
  'synchronous', current_setting('synchronous_standby_names'));
"""


def __virtual__() -> str:
    return __virtualname__


def locate(cluster: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where a cluster of this machine is.

    :param cluster: ``15/main`` as Debian names it, ``{"port": 5432}`` for the one on
        that port, a complete mapping (``bindir``, ``socket``, ``port``, ``data`` and,
        if it is not postgres, ``os_user``), or nothing when only one runs here.
    :returns: ``bindir``, ``socket`` (folder), ``port``, ``data`` (folder), ``os_user``; of
        Debian's also ``unit`` (of systemd) and ``config`` (folder).
    :raises CommandExecutionError: when none, or more than one, fits.

    CLI Example:

    .. code-block:: bash

        salt legacy pgcluster.locate 15/main
    """
    if isinstance(cluster, Mapping) and {"bindir", "socket", "port", "data"} <= set(cluster):
        return {"os_user": "postgres", **cluster, "port": int(cluster["port"])}
    rows = _debian_clusters()
    port = cluster.get("port") if isinstance(cluster, Mapping) else None
    fits = [
        row
        for row in rows
        if (port is None or row["port"] == int(port))
        and (not isinstance(cluster, str) or row["name"] == cluster)
        and (cluster is not None or row["status"].startswith("online"))
    ]
    if len(fits) != 1:
        seen = ", ".join(f"{r['name']} (port {r['port']}, {r['status']})" for r in rows) or "none"
        raise CommandExecutionError(
            f"PostgreSQL: {len(fits)} clusters here fit {cluster or 'an online one'!r}; "
            f"this machine has: {seen}. Name one as <version>/<name>."
        )
    row = fits[0]
    major = row["name"].split("/")[0]
    return {
        "unit": f"postgresql@{row['name'].replace('/', '-')}",
        "config": f"/etc/postgresql/{row['name']}",
        "bindir": f"/usr/lib/postgresql/{major}/bin",
        "socket": _socket_of(row["data"]),
        "port": row["port"],
        "data": row["data"],
        "os_user": row["owner"],
    }


def others(cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Debian's clusters of this machine but the one of :func:`locate`."""
    return [row for row in _debian_clusters() if row["data"] != cluster["data"]]


def connection(
    cluster: str | Mapping[str, Any] | None = None, database: str = "postgres"
) -> dict[str, Any]:
    """The superuser's connection to a database of a cluster, over the unix socket.

    :param cluster: as for :func:`locate`.
    :param database: the database's name.
    :returns: the mapping that :func:`sql` takes.
    """
    at = locate(cluster)
    return {
        "bindir": at["bindir"],
        "os_user": at["os_user"],
        "params": {
            "host": at["socket"],
            "port": at["port"],
            "user": at["os_user"],
            "dbname": database,
        },
    }


def server(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """What a backup has to know of a whole cluster.

    :param cluster: a complete cluster, see :func:`locate`.
    :returns: ``system_identifier``, ``timeline``, ``version``, ``databases``, ``sizes``
        and ``bytes`` (of all), ``tablespaces`` (oid to folder), ``wal_level``,
        ``max_wal_senders``, ``senders``, ``max_slots``, ``slots``, ``synchronous``.
    """
    value: dict[str, Any] = sql(connection(cluster), _SERVER, what="facts of the cluster")[0]
    return value


def sql(
    connection: Mapping[str, Any], script: str, timeout: float = 60, what: str = ""
) -> list[Any]:
    """Run statements in one session; each row must be one JSON value.

    :param connection: see the module's head.
    :param script: SQL, given to psql on its standard input; the first error stops it.
    :param timeout: seconds for all of it.
    :param what: for the error: what was being done.
    :returns: the rows, decoded, in order.
    :raises CommandExecutionError: with what the server said.

    CLI Example:

    .. code-block:: bash

        salt legacy pgcluster.sql '{"bindir": "...", "params": {...}}' 'SELECT 1'
    """
    with service(connection) as environment:
        done = run(
            [_program(connection, "psql"), "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"],
            os_user=connection.get("os_user"),
            timeout=timeout,
            what=what or "a query",
            stdin=f"SET statement_timeout = '{int(timeout * 1000)}ms';\n{script}\n",
            environment=environment,
        )
    return [json.loads(line) for line in done.splitlines() if line.strip()]


@contextlib.contextmanager
def service(connection: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The environment under which libpq's programs reach ``connection``.

    :param connection: see the module's head.
    :returns: a context manager; the file behind it is removed at its end.
    """
    params = {k: v for k, v in connection["params"].items() if v is not None}
    for key, value in params.items():
        if "\n" in str(value) or str(value) != str(value).rstrip():
            raise CommandExecutionError(
                f"PostgreSQL: the setting {key!r} ends in blanks or holds a line break, "
                "which libpq's service file cannot carry; change it."
            )
    lines = "".join(f"{key}={value}\n" for key, value in params.items())
    handle, path = tempfile.mkstemp(prefix="saltworks-pg-service-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(f"[saltworks]\n{lines}")
        _give(path, connection.get("os_user"))
        yield {"PGSERVICEFILE": path, "PGSERVICE": "saltworks"}
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def run(
    argv: Sequence[str],
    os_user: str | None = None,
    timeout: float = 60,
    what: str = "",
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    log: str | None = None,
    stop_at: str | None = None,
) -> str:
    """Run a program, bounded, as another user; the whole process group dies with it.

    :param argv: the command; it must hold no secret.
    :param os_user: the account to run it as; ignored when this process is not root.
    :param timeout: seconds.
    :param what: what it is for, for the error.
    :param stdin: text for its standard input.
    :param environment: added to a minimal environment.
    :param log: file that gets its output in place of the answer.
    :param stop_at: a text in ``log`` that means that it failed and will not end.
    :returns: its standard output.
    :raises CommandExecutionError: on an exit code other than 0, or when time is up.
    """
    what = what or os.path.basename(argv[0])
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(
            open(log, "ab") if log else tempfile.TemporaryFile()  # noqa: SIM115
        )
        err = out if log else stack.enter_context(tempfile.TemporaryFile())
        source = stack.enter_context(tempfile.TemporaryFile())
        source.write((stdin or "").encode())
        source.seek(0)
        process = _begin(argv, os_user, source, out, err, environment, what)
        code = _wait_for(process, timeout, log, stop_at)
        said = _tail(log) if log else f"{_all(err)[-1500:]} {_all(out)[-500:]}".strip()
        _judge(code, what, argv[0], timeout, said)
        return "" if log else _all(out)


def control(at: Mapping[str, Any], words: Sequence[str], seconds: float, what: str) -> None:
    """pg_ctl, on the data folder of a cluster, as its owner.

    :param at: ``bindir``, ``data`` and ``os_user`` of it.
    :param words: its options and its mode.
    :param seconds: the bound.
    :param what: is going on, for the error.
    :raises CommandExecutionError: it failed, with what it said.
    """
    argv = [f"{at['bindir']}/pg_ctl", "-D", at["data"], *words]
    run(argv, os_user=at["os_user"], timeout=seconds, what=what)


def hold(argv: Sequence[str], os_user: str | None, log: str) -> subprocess.Popen[bytes]:
    """Start a program that waits for a line on its standard input; see :func:`let_go`.

    When this process ends without that, the program reads the end of its input.

    :param argv: the command; it must hold no secret.
    :param os_user: the account to run it as.
    :param log: file that gets its output.
    """
    with open(log, "ab") as out:
        return _begin(argv, os_user, subprocess.PIPE, out, out, None, os.path.basename(argv[0]))


def let_go(
    process: subprocess.Popen[bytes],
    timeout: float,
    what: str,
    log: str,
    stop_at: str | None = None,
) -> None:
    """Give a held program its line, and wait for its end; bounds and errors as :func:`run`."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"go\n")
        process.stdin.close()
    code = _wait_for(process, timeout, log, stop_at)
    _judge(code, what, "the held program", timeout, _tail(log))


def _begin(
    argv: Sequence[str],
    os_user: str | None,
    stdin: Any,
    out: Any,
    err: Any,
    environment: Mapping[str, str] | None,
    what: str,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=out,
            stderr=err,
            cwd="/",
            start_new_session=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "HOME": "/",
                "PGCONNECT_TIMEOUT": "10",
                **(environment or {}),
            },
            **identity(os_user),
        )
    except OSError as problem:
        raise CommandExecutionError(f"{what}: {argv[0]} cannot be started: {problem}") from None


def _judge(code: int | None, what: str, program: str, timeout: float, said: str) -> None:
    if code is None:
        raise CommandExecutionError(
            f"{what}: {program} was still running after {timeout:g} s and was stopped. {said}"
        )
    if code != 0:
        raise CommandExecutionError(f"{what}: {program} ended with {code}: {said}")


def identity(os_user: str | None) -> dict[str, Any]:
    """Arguments of :class:`subprocess.Popen` that make a program run as ``os_user``."""
    if not os_user or os.geteuid() != 0:
        return {}
    entry = account(os_user)
    if entry.pw_uid == 0:
        return {}
    groups = os.getgrouplist(os_user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def account(os_user: str) -> pwd.struct_passwd:
    """The account ``os_user`` of this machine, or an error that names it."""
    try:
        return pwd.getpwnam(os_user)
    except KeyError:
        raise CommandExecutionError(f"there is no account {os_user!r} on this machine") from None


def wait_until(
    ready: Callable[[], Any],
    seconds: float,
    what: str,
    then: str | Callable[[], str],
    every: float = 0.02,
) -> Any:
    """Poll ``ready`` until it answers something true.

    :param seconds: the bound.
    :param what: what is waited for, for the error.
    :param then: what to do when it never comes; a function is asked only then.
    :returns: the true answer.
    :raises CommandExecutionError: when the time is up.
    """
    end = time.monotonic() + seconds
    while True:
        answer = ready()
        if answer:
            return answer
        if time.monotonic() >= end:
            do = then if isinstance(then, str) else then()
            raise CommandExecutionError(f"waited {seconds:g} s for {what}, in vain. {do}")
        time.sleep(every)


@contextlib.contextmanager
def held(directory: str, doing: str) -> Iterator[None]:
    """The lock of a backup directory, so that two runs do not step on each other."""
    path = os.path.join(directory, "lock")
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CommandExecutionError(
                f"{directory}: another run works here ({file.read().strip()}); wait for its end"
            ) from None
        file.truncate(0)
        file.write(f"{doing}, process {os.getpid()}\n")
        file.flush()
        yield


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Put a record in place whole or not at all, mode 0600."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)


def read_json(path: str) -> dict[str, Any] | None:
    """A record written by :func:`write_json`; None when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value: dict[str, Any] = json.load(file)
            return value
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def make_directory(path: str, os_user: str, mode: int = 0o700) -> None:
    """A folder of ``os_user``'s own; its parents must let that account through."""
    if not SAFE_PATH.match(path) or ".." in path.split("/"):
        raise CommandExecutionError(
            f"{path!r}: a backup folder is an absolute path of letters, digits and . _ + - only"
        )
    os.makedirs(path, mode=0o755, exist_ok=True)
    os.chmod(path, mode)
    _give(path, os_user)
    try:
        run(["test", "-w", path], os_user=os_user, what=path)
    except CommandExecutionError:
        raise CommandExecutionError(
            f"{path}: the account {os_user} cannot write there; a folder above it shuts it out. "
            "Choose a folder below one with mode 0755, such as /var/backups."
        ) from None


def condition(data: str) -> str:
    """How the server of a data folder stands: ``gone``, or what it says of itself.

    That is ``starting``, ``stopping``, ``standby`` or ``ready``, the eighth line of
    postmaster.pid (PostgreSQL: pidfile.h).
    """
    try:
        with open(f"{data}/postmaster.pid", encoding="utf-8") as file:
            lines = file.read().splitlines()
        with open(f"/proc/{int(lines[0])}/cmdline", "rb") as file:
            # After a reboot the pid may be another's.
            ours = data.encode() in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        return "gone"
    if not ours:
        return "gone"
    return lines[7].strip() if len(lines) > 7 else "starting"


def now() -> str:
    """The time, UTC, for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def stamp() -> str:
    """The time, UTC, to the microsecond, as part of a name that must be unique."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime()) + f"{time.time_ns() // 1000 % 10**6:06d}"


def tree_bytes(path: str) -> int:
    """Size of the files below ``path`` in bytes, links not followed."""
    total = 0
    for root, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def free_bytes(path: str) -> int:
    """Bytes that may be written on the file system that ``path`` is, or will be, on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def _debian_clusters() -> list[dict[str, Any]]:
    if not shutil.which("pg_lsclusters"):
        return []
    rows = []
    for line in run(["pg_lsclusters", "-h"], what="the list of clusters").splitlines():
        version, name, port, status, owner, data = line.split()[:6]
        rows.append(
            {
                "name": f"{version}/{name}",
                "port": int(port),
                "status": status,
                "owner": owner,
                "data": data,
            }
        )
    return rows


def _socket_of(data: str) -> str:
    """The socket folder is the fifth line of postmaster.pid (PostgreSQL: pidfile.h)."""
    with contextlib.suppress(OSError, IndexError), open(f"{data}/postmaster.pid") as file:
        return file.read().splitlines()[4].strip() or "/var/run/postgresql"
    return "/var/run/postgresql"


def _program(connection: Mapping[str, Any], name: str) -> str:
    bindir = connection.get("bindir")
    return os.path.join(bindir, name) if bindir else name


def _give(path: str, os_user: str | None) -> None:
    if os_user and os.geteuid() == 0:
        entry = account(os_user)
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _wait_for(
    process: subprocess.Popen[bytes], timeout: float, log: str | None, stop_at: str | None
) -> int | None:
    end = time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        try:
            return process.wait(min(left, 0.5) if stop_at else max(left, 0))
        except subprocess.TimeoutExpired:
            hopeless = bool(stop_at and log and stop_at in _tail(log))
            if hopeless or time.monotonic() >= end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return -1 if hopeless else None


def _all(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace")).strip()


def _tail(path: str, size: int = 2000) -> str:
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace").strip()
