"""A primary and streaming standbys, and what may happen to them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.process import postgres
from tests.process.front_door import free_ports, wait_for

Json = dict[str, Any]

PASSWORD = "secret"
FAST = (
    "wal_receiver_status_interval = 1s\nwal_retrieve_retry_interval = 200ms\n"
    "hot_standby_feedback = on\nmax_standby_streaming_delay = 500ms\nfsync = off\n"
    "wal_keep_size = 256MB\nmax_connections = 150\n"
)


@dataclass
class Servers:
    """The first one is the primary to begin with.

    :ivar primary: which of them is it now.
    """

    all: list[Json]
    primary: int = 0
    frozen: list[psutil.Process] = field(default_factory=list)

    def sql(self, script: str, at: int | None = None, database: str = "synapse") -> str:
        """Run a script as the superuser; on the primary unless said otherwise."""
        return postgres.psql(self.all[self.primary if at is None else at], script, database)

    def args(self, *which: int) -> Json:
        """What Synapse's ``database.args`` are to reach the one of these that takes writes."""
        ports = ",".join(str(self.all[number]["port"]) for number in which)
        return {
            "user": "synapse", "password": PASSWORD, "dbname": "synapse",
            "host": ",".join("127.0.0.1" for _ in which), "port": ports,
            "target_session_attrs": "read-write", "cp_min": 1, "cp_max": 3,
        }

    def entry(self, number: int) -> Json:
        """A standby's entry in the module's configuration."""
        return {"host": "127.0.0.1", "port": self.all[number]["port"]}

    def name(self, number: int) -> str:
        return f"127.0.0.1:{self.all[number]['port']}"

    def control(self, number: int, *words: str) -> None:
        at = self.all[number]
        program = f"{at['bindir']}/pg_ctl"
        postgres.as_user(at, program, "-D", at["data"], "-w", "-t", "60", *words)

    def start(self, number: int) -> None:
        at = self.all[number]
        self.control(number, "-l", f"{at['top']}/run/log", "start")
        # A standby is up, for pg_ctl, before what it has is consistent.
        wait_for(f"server {number}", lambda: self._answers(number), 60)

    def _answers(self, number: int) -> bool:
        try:
            return self.sql("SELECT 1", number, "postgres") == "1"
        except subprocess.CalledProcessError:
            return False

    def kill(self, number: int) -> None:
        """All of its processes at once, as the machine's power would."""
        killed = self.processes(number)
        for process in killed:
            process.kill()
        # Those that are left hold its shared memory.
        assert not psutil.wait_procs(killed, 20)[1], "a server's processes outlived SIGKILL"

    def freeze(self, number: int) -> None:
        self.frozen = self.processes(number)
        for process in self.frozen:
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self.frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self.frozen = []

    def processes(self, number: int) -> list[psutil.Process]:
        """The postmaster first."""
        parent = self._postmaster(number)
        return [parent, *parent.children(recursive=True)] if parent else []

    def _postmaster(self, number: int) -> psutil.Process | None:
        with contextlib.suppress(OSError, psutil.Error, ValueError):
            pid = Path(f"{self.all[number]['data']}/postmaster.pid").read_text().splitlines()[0]
            process = psutil.Process(int(pid))
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def follow(self, number: int, of: int) -> None:
        """Make a stopped server a standby of another one, where it has stopped."""
        at = self.all[number]
        _say(at, f"primary_conninfo = 'host={self.all[of]['socket']} port={self.all[of]['port']} "
                 f"user={at['os_user']}'\nrecovery_target_timeline = latest\n")
        postgres.as_user(at, "touch", f"{at['data']}/standby.signal")

    def promote(self, number: int) -> None:
        self.control(number, "promote")
        self.primary = number

    def caught_up(self, number: int) -> None:
        """Wait until a standby has replayed what the primary has flushed."""
        lsn = self.sql("SELECT pg_current_wal_flush_lsn()")
        wait_for(
            f"standby {number}", lambda: self.sql(
                f"SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}', true)", number) == "t", 30)

    def backend_cut(self, number: int) -> None:
        """End the WAL receiver's way: the standby serves on, and hears nothing more."""
        self.sql("ALTER SYSTEM SET primary_conninfo = ''", number)
        self.sql("SELECT pg_reload_conf()", number)
        wait_for("the end of the WAL receiver", lambda: self.sql(
            "SELECT count(*) FROM pg_stat_wal_receiver", number) == "0")


def _say(at: Json, lines: str) -> None:
    path = Path(f"{at['data']}/postgresql.conf")
    path.write_text(path.read_text() + lines)


@contextlib.contextmanager
def servers(standbys: int, config: str = "") -> Iterator[Servers]:
    """A primary with Synapse's role and an empty database, and so many standbys of it."""
    with contextlib.ExitStack() as running:
        ports = free_ports(standbys + 1)
        first = running.enter_context(postgres.cluster(ports[0]))
        _say(first, FAST + config)
        made = Servers([first])
        made.control(0, "-l", f"{first['top']}/run/log", "-m", "fast", "restart")
        made.sql(
            f"CREATE ROLE synapse LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_read_all_stats;\n"
            "CREATE DATABASE synapse OWNER synapse TEMPLATE template0 ENCODING 'UTF8' "
            "LC_COLLATE 'C' LC_CTYPE 'C';", database="postgres",
        )
        for port in ports[1:]:
            at = running.enter_context(postgres.cluster(port, made=False))
            postgres.as_user(at, "find", at["data"], "-mindepth", "1", "-delete")
            postgres.as_user(
                at, f"{at['bindir']}/pg_basebackup", "-D", at["data"], "-R", "-X", "stream",
                "-c", "fast", "-h", first["socket"], "-p", str(first["port"]),
            )
            _say(at, f"port = {port}\nunix_socket_directories = '{at['socket']}'\n")
            made.all.append(at)
            made.start(len(made.all) - 1)
        running.callback(made.thaw)
        for number in range(1, standbys + 1):
            made.caught_up(number)
        yield made


