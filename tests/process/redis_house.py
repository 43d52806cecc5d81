"""Redis machines, sentinels and proxies of one machine, with the formulas' own files.

Each machine has two addresses: one where its daemons listen, and one by which all others know
it. Between the two is :class:`Network`, which knows who speaks to whom and can cut any two off from
each other: what is under way then is neither delivered nor refused, as where a cable is pulled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from salt.exceptions import CommandExecutionError

from tests.process.front_door import free_ports, wait_for
from tests.process.patroni_house import Authority, Json, Programs, folder, put, rendered
from tests.render import trees
from tests.unit.modules.minion_modules import load

PROXY: Any = load("_modules", "saltworks_redis_proxy")

CHANNEL = "lale.test"
SYNAPSE = {"user": "synapse", "password": "of synapse"}
REPLICATION = {"user": "replication", "password": "of \"replicas\""}
AT_REDIS = {"user": "sentinel", "password": "of sentinels at Redis"}
AT_SENTINELS = {"user": "sentinel", "password": "of sentinels"}
CHECK = {"user": "check", "password": "of who asks"}

REDISES = ("redis-1", "redis-2")
SENTINELS = (*REDISES, "dcs-1")
SYNAPSES = ("synapse", "worker-1")

#: Twisted's, for a client that has lost its connection (twisted/internet/protocol.py).
JITTER, FACTOR = 0.119626565582, math.e
#: Of Synapse's two connections to Redis, seconds: what it hears, and what it says
#: (synapse/replication/tcp/redis.py; txredisapi.RedisFactory). The second never goes back to less.
HEARS_SECONDS, SAYS_SECONDS = 5.0, 10.0


class Network:
    """Everything that one machine says to another goes through it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._blocked: set[frozenset[str]] = set()
        self._changed: list[asyncio.Event] = []
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def carry(self, number: int, port: int) -> None:
        """What is sent to a port of a machine's public address gets there."""

        async def serve() -> None:
            await asyncio.start_server(
                lambda r, w: self._one(r, w, number, port), public(number), port
            )

        asyncio.run_coroutine_threadsafe(serve(), self._loop).result(10)

    def cut(self, *pairs: tuple[int, int]) -> None:
        """Between these machines nothing gets through."""
        self._call(lambda: self._blocked.update(frozenset(map(inner, pair)) for pair in pairs))

    def mend(self) -> None:
        """Everything gets through again, also what was sent meanwhile."""

        def mended() -> None:
            self._blocked.clear()
            for event in self._changed:
                event.set()
            self._changed.clear()

        self._call(mended)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, function: Callable[[], Any]) -> None:
        done = threading.Event()

        def called() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(called)
        assert done.wait(10)

    async def _passable(self, pair: frozenset[str]) -> None:
        while pair in self._blocked:
            event = asyncio.Event()
            self._changed.append(event)
            await event.wait()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, port: int
    ) -> None:
        pair = frozenset((writer.get_extra_info("peername")[0], inner(number)))
        await self._passable(pair)
        try:
            there = await asyncio.open_connection(inner(number), port)
        except OSError:
            writer.transport.abort()
            return
        ways = (self._pump(reader, there[1], pair), self._pump(there[0], writer, pair))
        await asyncio.gather(*ways)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: frozenset[str]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passable(pair)
                writer.write(data)
                await writer.drain()
        await self._passable(pair)
        writer.close()


def public(number: int) -> str:
    """By which others know a machine."""
    return f"127.0.77.{number}"


def inner(number: int) -> str:
    """Where its daemons listen, and what they come from."""
    return f"127.0.78.{number}"


class Daemon:
    """One service of one machine, started as its unit starts it.

    :param unit: the rendered drop-in, for ``ExecStartPre`` and ``ExecStart``.
    """

    def __init__(self, programs: Programs, name: str, unit: Path) -> None:
        self.programs, self.name, self.unit = programs, name, unit
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        lines = [line.partition("=") for line in self.unit.read_text().splitlines()]
        for key, _, value in lines:
            if key == "ExecStartPre":
                # As the account of the tests, not as Debian's.
                argv = shlex.split(value.partition("/usr/bin/python3 ")[2])
                subprocess.run([sys.executable, *argv], check=True, timeout=60)
        (argv,) = [shlex.split(value) for key, _, value in lines if key == "ExecStart" and value]
        self.process = self.programs.start(self.name, *argv)

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def restart(self) -> None:
        """As ``systemctl restart`` does."""
        assert self.process
        self.process.terminate()
        self.process.wait(10)
        self.start()

    def freeze(self, frozen: bool = True) -> None:
        """It keeps its connections and answers nothing; or goes on."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


class House:
    """All of it: what a test needs to break and to ask.

    :param sentinels: none of them: there is one Redis.
    """

    def __init__(
        self, renderer: trees.Renderer, top: Path,
        redises: tuple[str, ...] = REDISES, sentinels: tuple[str, ...] = SENTINELS,
    ) -> None:
        self.renderer, self.top, self.programs = renderer, top, Programs(top)
        self.network, self.authority = Network(), Authority()
        self.port, self.sentinel_port, self.verdict_port = free_ports(3)
        names = dict.fromkeys([*redises, *sentinels, *SYNAPSES])
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        self.servers = {name: public(self.numbers[name]) for name in redises}
        self.peers = {name: public(self.numbers[name]) for name in sentinels}
        self.redis = {name: self._redis(name) for name in redises}
        self.sentinel = {name: self._sentinel(name) for name in sentinels}
        self.proxy = {name: self._proxy(name) for name in SYNAPSES}
        for name in redises:
            self.network.carry(self.numbers[name], self.port)
        for name in sentinels:
            self.network.carry(self.numbers[name], self.sentinel_port)
        (top / "authority.pem").write_text(self.authority.crt)

    def start(self) -> None:
        """Everything runs, and agrees."""
        for daemon in self.redis.values():
            daemon.start()
        for name in self.redis:
            wait_for(name, lambda name=name: self.role(name) != "")  # type: ignore[misc]
        for daemon in (*self.sentinel.values(), *self.proxy.values()):
            daemon.start()
        wait_for("all proxies' agreement", lambda: self.serving() == {self.master()}, 30)
        if self.sentinel:
            wait_for("the set's agreement", lambda: not self.status()["wrong"], 30)

    def end(self) -> None:
        self.programs.end()
        self.network.end()

    def between(self, some: set[str], others: set[str]) -> list[tuple[int, int]]:
        """Pairs for :meth:`Network.cut`."""
        return [(self.numbers[a], self.numbers[b]) for a in some for b in others]

    def pillar(self, formula: str, name: str) -> Json:
        """A machine's pillar of a formula."""
        number = self.numbers[name]
        if formula == "redis":
            follows = "" if name == REDISES[0] else self.servers[REDISES[0]]
            return {"redis": {
                "name": name, "address": public(number), "port": self.port, **SYNAPSE,
                "channel": CHANNEL, "certificate": self._certificate(name),
                "replication": {**REPLICATION, "follows": follows},
                "sentinel": AT_REDIS, "check": CHECK, "maxmemory": "32mb",
            }}
        common: Json = {"servers": self.servers, "server_port": self.port, "set": "tests",
                        "check": CHECK}
        if formula == "sentinel":
            return {"sentinel": {
                **common, "name": name, "address": public(number), "port": self.sentinel_port,
                "first": REDISES[0], "peers": self.peers, "redis": AT_REDIS,
                "account": AT_SENTINELS, "certificate": self._certificate(name),
            }}
        return {"redis_proxy": {
            **common, "address": inner(number), "port": self.port,
            "verdict_port": self.verdict_port, "sentinels": self.peers,
            "sentinel_port": self.sentinel_port, "authority": self.authority.crt,
        }}

    def _certificate(self, name: str) -> Json:
        made: dict[str, Json] = self.__dict__.setdefault("made", {})
        if name not in made:
            made[name] = self.authority.issue(name)
        return made[name]

    def write(self, formula: str, name: str) -> dict[str, str]:
        """A state run of a formula: its files.

        :returns: path → text of all that are Salt's.
        """
        home = self.top / name
        folders = {
            "/etc/redis": home / "redis", "/var/lib/redis": home / "redis-data",
            "/etc/redis-sentinel": home / "sentinel",
            "/var/lib/redis-sentinel": home / "sentinel-data",
            "/etc/haproxy": home / "haproxy", "/run/haproxy": home / "haproxy-run",
            "/etc/systemd/system": home / "units", "/usr/local/lib/saltworks": home / "lib",
        }  # fmt: skip
        for path in folders.values():
            path.mkdir(parents=True, exist_ok=True)
        pillar = self.pillar(formula, name)
        files = list(rendered(self.renderer, f"{formula}.configured", pillar))
        put(folders, iter([(p, self._here(t, name), m) for p, t, m in files]), "root")
        return {path: text for path, text, _ in files}

    def _here(self, text: str, name: str) -> str:
        """A rendered file, for this machine among all that are one."""
        own = inner(self.numbers[name])
        listens = f"bind {public(self.numbers[name])}\n"
        text = text.replace(listens, f"bind {own}\nbind-source-addr {own}\n")
        text = text.replace("    mode tcp\n", f"    mode tcp\n    source {own}\n", 1)
        return text.replace("    user haproxy\n    group haproxy\n", "")

    def _redis(self, name: str) -> Daemon:
        self.write("redis", name)
        unit = self.top / name / "units/redis-server.service.d/saltworks.conf"
        return Daemon(self.programs, f"redis-{name}", unit)

    def _sentinel(self, name: str) -> Daemon:
        self.write("sentinel", name)
        unit = self.top / name / "units/redis-sentinel.service.d/saltworks.conf"
        return Daemon(self.programs, f"sentinel-{name}", unit)

    def _proxy(self, name: str) -> Daemon:
        self.write("redis_proxy", name)
        # Debian's own.
        unit = self.top / name / "units/haproxy.service"
        config = self.top / name / "haproxy/haproxy.cfg"
        unit.write_text(f"ExecStart=/usr/sbin/haproxy -db -f {config}")
        return Daemon(self.programs, f"proxy-{name}", unit)

    def cli(self, name: str, *words: str, account: Json = CHECK, port: int = 0) -> str:
        """What redis-cli prints, asked at the machine itself."""
        done = subprocess.run(
            ["redis-cli", "-h", inner(self.numbers[name]), "-p", str(port or self.port), "--tls",
             "--cacert", f"{self.top}/authority.pem", "--sni", name, "--user", account["user"],
             "--pass", account["password"], "--no-auth-warning", *words],
            capture_output=True, text=True, timeout=20, check=False,
        )
        return done.stdout + done.stderr

    def role(self, name: str) -> str:
        """What a Redis says that it is, ``''`` if nothing."""
        if self.redis[name].process is None:
            return ""
        said = self.cli(name, "INFO", "replication")
        return next((row[5:] for row in said.splitlines() if row.startswith("role:")), "")

    def master(self) -> str:
        """The Redis that says so."""
        return ",".join(name for name in self.redis if self.role(name) == "master")

    def follower(self) -> str:
        (name,) = set(self.redis) - {self.master()}
        return name

    def verdict(self, proxy: str) -> str:
        """Where a proxy sends to; ``''``: nowhere."""
        try:
            shown = PROXY.status(str(self.top / proxy / "haproxy-run/admin.sock"))
        except CommandExecutionError:
            return ""
        return str(shown["serves"])

    def proxied(self, proxy: str) -> Json:
        """What ``redis_proxy.status`` says on a machine."""
        shown: Json = PROXY.status(str(self.top / proxy / "haproxy-run/admin.sock"))
        return shown

    def on_disk(self, name: str) -> dict[str, str]:
        """The files of a machine that are Salt's."""
        home = self.top / name
        return {
            str(path.relative_to(home)): path.read_text()
            for kind in ("redis", "sentinel", "units", "lib", "haproxy")
            for path in sorted((home / kind).glob("**/*")) if path.is_file()
        }

    def serving(self) -> set[str]:
        """Where all proxies send to."""
        return {self.verdict(name) for name in self.proxy}

    def rest(self) -> None:
        """Wait until all of it agrees, and would agree on the next failover, too."""
        wait_for("peace", lambda: not self.status()["wrong"], 40)
        for name in self.proxy:
            # By the word of sentinels and of replicas, so that either may go.
            wait_for(f"the proxy of {name}", lambda name=name: self._convinced(name), 20)  # type: ignore[misc]
        for name in self.sentinel:
            wait_for(f"the rest of {name}", lambda name=name: self._rests(name), 30)  # type: ignore[misc]

    def _convinced(self, proxy: str) -> bool:
        """Whether everybody who could tells a proxy who the master is."""
        shown, master = self.proxied(proxy), self.master()
        told = {
            "says_master": True, "named_by": sorted(self.sentinel),
            "followed_by": [name for name in sorted(self.redis) if name != master],
        }
        return bool(shown["serves"] == master and shown["redises"].get(master) == told)

    def _rests(self, name: str) -> bool:
        """Whether a sentinel has no failover under way, and knows whom to make the master next."""
        address = self.servers[self.master()]
        (master,) = self._known(name, "MASTER")
        replicas = self._known(name, "REPLICAS")
        return (master["ip"], master["flags"]) == (address, "master") and [
            (row["flags"], row["master-link-status"], row["master-host"]) for row in replicas
        ] == [("slave", "ok", address)] * (len(self.redis) - 1)

    def _known(self, name: str, kind: str) -> list[dict[str, str]]:
        """What a sentinel knows: rows of fields."""
        said = self.cli(
            name, "SENTINEL", kind, "tests", account=AT_SENTINELS, port=self.sentinel_port
        )
        rows: list[dict[str, str]] = []
        words = iter(said.splitlines())
        for key, value in zip(words, words, strict=False):
            if key == "name":
                rows.append({})
            rows[-1][key] = value
        return rows

    def module(self, name: str = "dcs-1") -> ModuleType:
        """``redis_set``, as a sentinel's machine has it."""
        salt = {
            f"{virtual}.{key}": value
            for virtual, name in (("redis_rules", "saltworks_redis_rules"),
                                  ("redis_bus", "redis_bus"))
            for key, value in vars(load("_modules", name)).items()
        }
        made = load("_modules", "saltworks_redis_set", salt)
        made.__dict__["CONFIG_DIR"] = str(self.top / name / "sentinel")
        return made

    def status(self, name: str = "dcs-1") -> Json:
        shown: Json = self.module(name).status()
        return shown



class Line:
    """One of a process's connections, which comes back as Synapse's does."""

    def __init__(
        self, at: tuple[str, int], first: list[list[str]], most: float, forgets: bool
    ) -> None:
        self.at, self.first, self.most, self.forgets = at, first, most, forgets
        #: A process that has been through some faults: it waits its longest.
        self.delay = 1.0 if forgets else most
        self.count = 0
        self.socket: socket.socket | None = None
        self.stream: Any = None
        self.ended = threading.Event()

    def connect(self) -> None:
        """Until it is connected and let in."""
        while not self.ended.is_set():
            try:
                self.socket = socket.create_connection(self.at, timeout=30)
                self.stream = self.socket.makefile("rwb")
                for words in self.first:
                    self.say(*words)
                    self._answer(words)
            except OSError:
                self.lost()
                continue
            self.count += 1
            if self.forgets:
                self.delay = 1.0
            return

    def say(self, *words: str) -> None:
        self.stream.write(b"*%d\r\n" % len(words))
        for word in words:
            self.stream.write(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()))
        self.stream.flush()

    def _answer(self, words: list[str]) -> None:
        for _ in range(6 if words[0] == "SUBSCRIBE" else 1):
            line = self.stream.readline()
            if not line or line.startswith(b"-"):
                raise ConnectionError(line)

    def lost(self) -> None:
        """Closed, and some time of patience, as twisted has it."""
        self.close()
        wait = random.normalvariate(self.delay, self.delay * JITTER)
        self.delay = min(self.delay * FACTOR, self.most)
        self.ended.wait(wait)

    def close(self) -> None:
        for thing in (self.stream, self.socket):
            if thing is not None:
                with contextlib.suppress(OSError):
                    thing.close()


class Process:
    """Two connections through the proxy of a machine, as every process of Synapse has them.

    It says its name and a number all the time, and writes down what it hears of others, and when.
    """

    def __init__(self, name: str, at: tuple[str, int], says_seconds: float) -> None:
        self.name = name
        auth = ["AUTH", SYNAPSE["user"], SYNAPSE["password"]]
        most = min(HEARS_SECONDS, says_seconds)
        self.hears = Line(at, [auth, ["SUBSCRIBE", CHANNEL]], most, True)
        self.says = Line(at, [auth], says_seconds, False)
        #: (when, who, on which of its connections, on which of ours)
        self.heard: list[tuple[float, str, int, int]] = []
        runs = (self._hear, self._say)
        self.threads = [threading.Thread(target=run, daemon=True) for run in runs]
        for thread in self.threads:
            thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """The connection by which it hears, and that by which it speaks: the how manieth."""
        return self.hears.count, self.says.count

    def _hear(self) -> None:
        while not self.hears.ended.is_set():
            self.hears.connect()
            with contextlib.suppress(OSError, ValueError):
                while True:
                    rows = [self.hears.stream.readline() for _ in range(7)]
                    if not rows[-1]:
                        break
                    who, count = rows[-1].decode().split()
                    self.heard.append((time.monotonic(), who, int(count), self.hears.count))
            self.hears.lost()

    def _say(self) -> None:
        while not self.says.ended.is_set():
            self.says.connect()
            with contextlib.suppress(OSError, ValueError):
                while not self.says.ended.is_set():
                    self.says.say("PUBLISH", CHANNEL, f"{self.name} {self.says.count}")
                    if not self.says.stream.readline():
                        break
                    self.says.ended.wait(0.05)
            self.says.lost()

    def heard_since(self, other: Process, since: float) -> list[tuple[float, int, int]]:
        """When it heard another one after a moment; on which of its connections, and of ours."""
        return [(when, says, hears) for when, who, says, hears in list(self.heard)
                if who == other.name and when > since]

    def end(self) -> None:
        for line in (self.hears, self.says):
            line.ended.set()
            if line.socket is not None:
                with contextlib.suppress(OSError):
                    line.socket.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(20)


class Bus:
    """One process of Synapse's on each of its machines, which hear each other."""

    def __init__(self, house: House, says_seconds: float) -> None:
        self.before = {name: (0, 0) for name in house.proxy}
        self.since = time.monotonic()
        self.made = [
            Process(name, (inner(house.numbers[name]), house.port), says_seconds)
            for name in house.proxy
        ]
        self.pairs = [(a, b) for a in self.made for b in self.made if a is not b]

    def mark(self) -> float:
        """From now on counts what happens to the connections that are there now."""
        self.before = {process.name: process.counts for process in self.made}
        self.since = time.monotonic()
        return self.since

    def resumed(self) -> float:
        """Seconds from the mark until all heard each other by new lines; infinity: not yet."""
        return max(self._first(a, b) for a, b in self.pairs) - self.since

    def _first(self, hears: Process, says: Process) -> float:
        old_hears, old_says = self.before[hears.name][0], self.before[says.name][1]
        rows = hears.heard_since(says, self.since)
        return min((when for when, s, h in rows if s > old_says and h > old_hears),
                   default=math.inf)

    def silence(self) -> float:
        """The longest time since the mark that one has not heard another, seconds."""
        now = time.monotonic()
        longest = 0.0
        for a, b in self.pairs:
            times = [self.since, *(when for when, _, _ in a.heard_since(b, self.since)), now]
            longest = max(longest, *(y - x for x, y in itertools.pairwise(times)))
        return longest

    def wait(self, seconds: float) -> float:
        """Until they hear each other by new connections; see :meth:`resumed`."""
        wait_for("that all hear each other", lambda: self.resumed() < math.inf, seconds)
        return self.resumed()


@contextlib.contextmanager
def started(renderer: trees.Renderer) -> Iterator[House]:
    """All of it runs within the block."""
    with folder() as top:
        house = House(renderer, top)
        try:
            house.start()
            yield house
        finally:
            house.end()


@contextlib.contextmanager
def bus(house: House, says_seconds: float) -> Iterator[Bus]:
    """Synapse's processes, connected.

    :param says_seconds: how long the connection by which one speaks waits at the most before it
        comes again.
    """
    made = Bus(house, says_seconds)
    try:
        made.wait(60)
        yield made
    finally:
        for process in made.made:
            process.end()


class Watch(threading.Thread):
    """Looks at all proxies all the time: how long did two of them send to different ones?"""

    def __init__(self, house: House) -> None:
        super().__init__(daemon=True)
        self.house, self.ended = house, threading.Event()
        self.split = 0.0
        self.rows: list[tuple[float, tuple[str, ...]]] = []

    def run(self) -> None:
        last, was = time.monotonic(), False
        while not self.ended.wait(0.03):
            seen = tuple(self.house.verdict(name) for name in self.house.proxy)
            now = time.monotonic()
            if not self.rows or self.rows[-1][1] != seen:
                self.rows.append((now, seen))
            is_split = len({*seen} - {""}) > 1
            if is_split and was:
                self.split += now - last
            last, was = now, is_split

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(10)
