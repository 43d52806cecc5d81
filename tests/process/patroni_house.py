"""A real etcd, Patronis and PostgreSQLs of one machine, with the formulas' own files.

Each machine is an address of its own (127.0.0.2 ...), which is also its name. Where the formulas
name Debian's folders, those of the test stand.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from saltworks import pki

from tests.process import postgres
from tests.process.front_door import free_ports, wait_for
from tests.render import trees

Json = dict[str, Any]

PATRONI = (
    *("saltworks_patroni", "saltworks_patroni_machine", "saltworks_patroni_rules"),
    *("saltworks_etcd_keys", *postgres.FILES),
)

PROGRAM = trees.FORMULAS / "patroni" / "files" / "patroni_guarded.py"

#: Small, as three servers share a test machine's memory.
GRAINS = {"mem_total": 512, "num_cpus": 1}

SECRETS = {
    "replication": {"role": "saltworks_replication", "password": "of the copies"},
    "rewind": {"role": "saltworks_rewind", "password": "of the rewinding"},
}


class Authority:
    """Who signs for all machines of a test."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.crt, self._key = pki.make_authority("tests", self.now)

    def issue(self, *names: str) -> Json:
        """A pillar's ``certificate``."""
        crt, key = pki.issue(self.crt, self._key, list(names), self.now)
        return {"crt": crt, "key": key, "authority": self.crt}


@dataclass
class Programs:
    """What runs, and in what folder; all of it ends with the test."""

    top: Path
    running: list[subprocess.Popen[Any]] = field(default_factory=list)

    def start(self, log: str, *argv: str, user: str = "") -> subprocess.Popen[Any]:
        """Start a program in a group of its own; its output goes to a file of the folder."""
        identity: Json = {}
        if user and os.geteuid() == 0:
            account = pwd.getpwnam(user)
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with open(self.top / f"{log}.log", "ab") as out:
            process = subprocess.Popen(
                argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/",
                start_new_session=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                **identity,
            )
        self.running.append(process)
        return process

    def end(self) -> None:
        """Every program that still runs is killed."""
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Where PostgreSQL's account gets through; in memory, where there is some."""
    memory = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2 << 30
    top = Path(tempfile.mkdtemp(prefix="saltworks-patroni-", dir="/dev/shm" if memory else None))
    top.chmod(0o755)
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


def rendered(
    renderer: trees.Renderer, sls: str, pillar: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Path, text and mode of every file that an SLS of a formula manages."""
    (path,) = [path for name, path in trees.sls_files().items() if name == sls]
    (case,) = trees.cases_for(sls, path, {"default": {"real": {"grains": GRAINS}}})
    case = trees.Case(sls, path, str(pillar), pillar, grains=case.grains)
    for chunk in renderer.compile(case):
        if (chunk["state"], chunk["fun"]) != ("file", "managed"):
            continue
        if key := chunk.get("contents_pillar"):
            text: Any = pillar
            for word in key.split(":"):
                text = text[word]
        elif "source" in chunk:
            text = renderer.template(case, chunk["source"], {})
        else:
            text = chunk["contents"]
        yield str(chunk["name"]), str(text), str(chunk["mode"])


def put(folders: Mapping[str, Path], files: Iterator[tuple[str, str, str]], user: str) -> None:
    """Write rendered files below the folders of a test, in the place of Debian's.

    :param folders: Debian's folder → the test's; files elsewhere are left out.
    :param user: who owns them.
    """
    # The longest first: one may be below another.
    names = sorted(folders, key=len, reverse=True)
    for name, text, mode in files:
        (top, *_) = [*(row for row in names if name.startswith(f"{row}/")), ""]
        if not top:
            continue
        for row in names:
            text = text.replace(row, str(folders[row]))
        target = folders[top] / name.removeprefix(f"{top}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        # Debian's are root's and the group's; a key of one's own must be one's own alone.
        target.chmod(0o600 if target.suffix == ".key" else int(mode, 8))
        give(target, user)


def give(path: Path, user: str) -> None:
    """A file or folder becomes somebody's, where that can be done."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.chown(path, account.pw_uid, account.pw_gid)


class Etcd:
    """Members of an etcd, each on an address of its own."""

    def __init__(
        self, renderer: trees.Renderer, programs: Programs, authority: Authority, count: int = 1
    ) -> None:
        self.programs = programs
        self.port, self.peer = free_ports(2)
        self.peers = {f"dcs{n}": f"127.0.0.{100 + n}" for n in range(1, count + 1)}
        self.hosts = [f"{address}:{self.port}" for address in self.peers.values()]
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        for name, address in self.peers.items():
            pillar = {
                "name": name, "address": address, "peers": self.peers, "token": "tests",
                "client_port": self.port, "peer_port": self.peer,
                # Members look where each other comes from, which is here for all of them:
                "certificate": authority.issue(name, address, "127.0.0.1"),
            }  # fmt: skip
            home = programs.top / name
            home.mkdir()
            folders = {"/etc/etcd": home, "/var/lib/etcd/default": home / "data"}
            put(folders, rendered(renderer, "etcd.configured", {"etcd": pillar}), "root")
        self.start()

    def config(self, name: str) -> str:
        return str(self.programs.top / name / "etcd.yml")

    def start(self, *names: str) -> None:
        """Start members, all without a name, and wait for a leader."""
        for name in names or self.peers:
            argv = ("/usr/bin/etcd", "--config-file", self.config(name))
            self.processes[name] = self.programs.start(name, *argv)
        module = member()
        for name in names or self.peers:
            module.healthy(20, self.config(name))

    def kill(self, *names: str) -> None:
        """Members die; all of them without a name."""
        for name in names or list(self.processes):
            process = self.processes.pop(name)
            process.kill()
            process.wait(10)

    def freeze(self, frozen: bool = True) -> None:
        """All members keep their connections, and answer nothing; or go on."""
        for process in self.processes.values():
            process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def at(self) -> Json:
        """All of its members, for the functions of ``etcd_keys``."""
        home = self.programs.top / next(iter(self.peers))
        files = {name: f"{home}/tls.{name}" for name in ("crt", "key", "authority")}
        return {"hosts": self.hosts, **files}


def member() -> ModuleType:
    """The loader module of etcd."""
    module = postgres.load(postgres.MODULES / "saltworks_etcd.py")
    module.__dict__["__salt__"] = postgres.loaded(("saltworks_etcd_keys",))
    return module


class Machine:
    """A database machine: Debian's folders, PostgreSQL as formula postgres has it, Patroni."""

    def __init__(
        self,
        renderer: trees.Renderer,
        programs: Programs,
        authority: Authority,
        hosts: list[str],
        number: int,
        **more: Any,
    ) -> None:
        self.renderer, self.programs = renderer, programs
        self.name = f"127.0.0.{number}"
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.home = programs.top / self.name
        self.folders = {
            "/etc/patroni": self.home / "patroni",
            "/etc/postgresql/15/main": self.home / "etc",
            "/etc/saltworks/postgres": self.home / "keys",
            "/var/lib/postgresql/15/main": self.home / "data",
            "/var/run/postgresql": self.home / "run",
        }
        for path in (self.home, *self.folders.values()):
            path.mkdir(mode=0o755)
            give(path, self.user)
        self.data = self.folders["/var/lib/postgresql/15/main"]
        self.data.chmod(0o700)
        self.port, self.api = free_ports(2)
        certificate = authority.issue(self.name)
        self.pillar: Json = {
            "postgres": {"listen": [self.name], "port": self.port, "certificate": certificate,
                         "scope": "tests", "replication": SECRETS["replication"], "upstream": {}},
            "patroni": {"scope": "tests", "name": self.name, "address": self.name,
                        "port": self.port, "api_port": self.api, "etcd": {"hosts": hosts},
                        "certificate": certificate, "superuser": self.user,
                        "peers": ["127.0.0.0/8"], "adopts": False,
                        "admits": [{"database": "all", "user": "all", "address": "127.0.0.0/8"}],
                        **SECRETS, **more},
        }  # fmt: skip
        self.salt = postgres.loaded(PATRONI)
        self._run = self.salt["pgcluster.run"]
        self.salt["pgcluster.run"] = self._systemd
        self.salt["service.status"] = lambda unit: unit == "patroni" and bool(self.process)
        self.config = str(self.folders["/etc/patroni"] / "config.yml")
        self.process: subprocess.Popen[Any] | None = None

    def _systemd(self, argv: list[str], **words: Any) -> str:
        """There is none in a test: what it is told of Patroni comes true, no more."""
        if argv[0] != "systemctl":
            done: str = self._run(argv, **words)
            return done
        assert argv == ["systemctl", "disable", "--now", "patroni"]
        if self.process:
            self.stop()
        return ""

    def stop(self) -> None:
        """Patroni ends as the unit ends it."""
        assert self.process
        self.process.terminate()
        self.process.wait(60)
        self.process = None

    @property
    def at(self) -> Json:
        """As ``pgcluster.locate`` takes it."""
        return {
            "bindir": postgres.bindir(), "socket": str(self.folders["/var/run/postgresql"]),
            "port": self.port, "data": str(self.data), "os_user": self.user,
            "config": str(self.folders["/etc/postgresql/15/main"]), "top": str(self.home),
        }  # fmt: skip

    def configure(self, sls: str = "patroni.configured", **changes: Any) -> None:
        """The files of a formula, with some keys of Patroni's pillar changed."""
        self.pillar["patroni"] |= changes
        put(self.folders, rendered(self.renderer, sls, self.pillar), self.user)

    def initdb(self, starts: bool = True) -> None:
        """A cluster as Debian makes it, with the formula's settings, running."""
        etc, at = self.folders["/etc/postgresql/15/main"], self.at
        postgres.as_user(
            at, f"{at['bindir']}/initdb", "-D", str(self.data), "--locale=C", "--encoding=UTF8",
            "--data-checksums", "-N", "-A", "peer",
        )
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            shutil.move(self.data / name, etc / name)
        (etc / "conf.d").mkdir()
        give(etc / "conf.d", self.user)
        with open(etc / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(
                f"data_directory = '{self.data}'\nhba_file = '{etc}/pg_hba.conf'\n"
                f"ident_file = '{etc}/pg_ident.conf'\nunix_socket_directories = '{at['socket']}'\n"
                f"cluster_name = '15/main'\ninclude_dir = 'conf.d'\n"
            )
        self.configure("postgres.configured")
        if starts:
            self.salt["pgserver.start"](at, 30)

    def take(self, durability: str = "async", maximum_lag: int = 1 << 20) -> Json:
        """What ``patroni.running`` does before Patroni starts; and Patroni."""
        self.configure()
        adopts = self.pillar["patroni"]["adopts"]
        self.salt["patroni_machine.attune"](
            self.at, durability, maximum_lag, [], adopts, self.config
        )
        if adopts:
            self.give_roles()
        done: Json = self.salt["patroni_machine.settle"](self.at, adopts, self.config)
        self.start()
        self.streaming()
        self.reload()
        return done

    def reload(self) -> None:
        """What ``systemctl reload`` does."""
        assert self.process
        self.process.send_signal(signal.SIGHUP)

    def give_roles(self) -> list[str]:
        given = {
            SECRETS["replication"]["role"]: {
                "password": SECRETS["replication"]["password"], "replication": True
            },
            SECRETS["rewind"]["role"]: {
                "password": SECRETS["rewind"]["password"], "made": True
            },
        }  # fmt: skip
        changed: list[str] = self.salt["patroni_machine.roles"](
            self.at, given, SECRETS["rewind"]["role"]
        )
        return changed

    def start(self) -> None:
        """Patroni, as the unit starts it."""
        self.process = self.programs.start(
            f"patroni-{self.name}", "/usr/bin/python3", str(PROGRAM), self.config, user=self.user
        )

    def streaming(self, seconds: float = 40) -> Json:
        done: Json = self.call("streaming", seconds)
        return done

    def call(self, name: str, *args: Any, **words: Any) -> Any:
        return self.salt[f"patroni.{name}"](*args, config=self.config, **words)

    def status(self) -> Json:
        shown: Json = self.call("status")
        return shown

    def sql(self, script: str, database: str = "postgres") -> str:
        return postgres.psql(self.at, script, database)

    def setting(self, name: str) -> str:
        return self.sql(f"SHOW {name};")

    @property
    def postmaster(self) -> int:
        """Its process; 0: it does not run."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return 0
        return pid

    def takes_writes(self) -> bool:
        """Whether the server here would take one now."""
        try:
            return self.sql("SELECT NOT pg_is_in_recovery();") == "t"
        except subprocess.CalledProcessError:
            return False

    def kill(self) -> None:
        """The machine dies: Patroni and all of PostgreSQL at once."""
        pid = self.postmaster
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None
        for child in family(pid) if pid else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        wait_for(f"PostgreSQL of {self.name} to be gone", lambda: not alive(pid))

    def freeze(self, frozen: bool = True) -> None:
        """The machine stands still, or goes on."""
        sign = signal.SIGSTOP if frozen else signal.SIGCONT
        assert self.process
        for pid in [self.process.pid, *family(self.postmaster)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)

    def end(self) -> None:
        if self.postmaster or self.process:
            self.kill()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def leader_of(machines: list[Machine]) -> Machine | None:
    """The one of them that has the key, and runs as the primary."""
    for machine in machines:
        with contextlib.suppress(Exception):
            if machine.process and machine.call("is_leader"):
                return machine
    return None


class Writer:
    """A client that writes wherever a server takes it, and remembers what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self._count = 0

    def tries(self, machine: Machine, seconds: float = 1.5) -> str:
        """One attempt; what was acknowledged, or ``''``.

        The client gives up by itself: a server that waits for a standby ignores statement_timeout.
        """
        self._count += 1
        text = f"row {self._count}"
        at = machine.at
        argv = (f"{at['bindir']}/psql", "-X", "-q", "-h", at["socket"], "-p", str(at["port"]),
                "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c",
                f"INSERT INTO said VALUES ('{text}')")  # fmt: skip
        process = machine.programs.start("client", *argv, user=machine.user)
        try:
            if process.wait(seconds):
                return ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            return ""
        self.acknowledged.append(text)
        return text

    def until(self, machines: list[Machine], seconds: float) -> tuple[Machine, float]:
        """Until one is acknowledged: by whom, and after how many seconds.

        :raises AssertionError: after the bound.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            for machine in machines:
                if self.tries(machine):
                    return machine, time.monotonic() - begun
            time.sleep(0.05)
        raise AssertionError(f"nobody took a write within {seconds:g} s")

    def lost(self, machine: Machine) -> list[str]:
        """What was acknowledged and is not there."""
        there = set(machine.sql("SELECT what FROM said;").splitlines())
        return [text for text in self.acknowledged if text not in there]
