"""A load of mostly /sync on a Synapse with standby reads, always the same, and what it costs."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import psutil

from tests.checker.client import CLIENT, Account, Answered, Http
from tests.process.standby_homeserver import WORKERS, Homeserver

PEOPLE, ROOMS = 16, 4
#: Operations a second beside the long polls, and of each kind so many of ten.
RATE = 10
MIX = ("initial sync",) * 3 + ("messages",) * 3 + ("members",) * 2 + ("keys", "send")


@dataclass
class Cost:
    """CPU seconds by who, and seconds of each kind's answers.

    :param served: interactions of the readers by outcome, and their seconds.
    """

    cpu: dict[str, float]
    seconds: dict[str, list[float]]
    served: dict[str, float]
    spent: dict[str, float]

    def median(self, kind: str) -> float:
        return statistics.median(self.seconds[kind])


@dataclass
class Load:
    """People in rooms, who sync all the time."""

    server: Homeserver
    people: list[Account] = field(default_factory=list)
    rooms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http = Http()
        self.readers = [self.server.url(name) for name in WORKERS]

    def prepare(self) -> None:
        main = self.server.url("main")
        self.people = [self.http.register(main, f"p{n}", "a long one 1") for n in range(PEOPLE)]
        for number in range(ROOMS):
            owner = self.people[number]
            made = self.http.ask(main, "POST", f"{CLIENT}/createRoom", owner.token,
                                 {"preset": "public_chat"})
            self.rooms.append(str(made["room_id"]))
            for who in self.people:
                self.http.ask(main, "POST", f"{CLIENT}/join/{quote(self.rooms[-1])}", who.token, {})
            for text in range(30):
                self.http.send(self.readers[0], owner, self.rooms[-1], f"{text}")

    def phase(self, seconds: float, seed: int) -> Cost:
        """The same operations for the same seed, at a fixed pace."""
        took: dict[str, list[float]] = defaultdict(list)
        ended = threading.Event()
        pollers = [threading.Thread(target=self._poll, args=(who, ended)) for who in self.people]
        for thread in pollers:
            thread.start()
        time.sleep(1)
        before, served, spent = self._cpu(), self.server.served(), self._spent()
        self._operate(seconds, seed, took)
        after, more, longer = self._cpu(), self.server.served(), self._spent()
        ended.set()
        for thread in pollers:
            thread.join(30)
        return Cost(
            {who: after[who] - before[who] for who in after}, took,
            {name: more[name] - served.get(name, 0) for name in more},
            {name: longer[name] - spent.get(name, 0) for name in longer},
        )

    def _operate(self, seconds: float, seed: int, took: dict[str, list[float]]) -> None:
        chance = random.Random(seed)
        plan = [(chance.choice(MIX), chance.choice(self.people), chance.choice(self.rooms),
                 chance.choice(self.readers)) for _ in range(int(seconds * RATE))]
        turn = iter(enumerate(plan))
        lock, begun = threading.Lock(), time.monotonic()

        def work() -> None:
            while True:
                with lock:
                    number, row = next(turn, (-1, None))
                if row is None:
                    return
                time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                started = time.monotonic()
                self._operation(*row)
                took[row[0]].append(time.monotonic() - started)

        workers = [threading.Thread(target=work) for _ in range(6)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join(300)

    def _operation(self, kind: str, who: Account, room: str, at: str) -> None:
        path = f"{CLIENT}/rooms/{quote(room)}"
        does: dict[str, Callable[[], object]] = {
            "initial sync": lambda: self.http.ask(
                at, "GET", f"{CLIENT}/sync", who.token, full_state="true", timeout="0"),
            "messages": lambda: self.http.ask(
                at, "GET", f"{path}/messages", who.token, dir="b", limit="50"),
            "members": lambda: self.http.ask(at, "GET", f"{path}/members", who.token),
            "keys": lambda: self.http.ask(
                at, "POST", f"{CLIENT}/keys/query", who.token,
                {"device_keys": {each.user_id: [] for each in self.people}}),
            "send": lambda: self.http.send(at, who, room, "text"),
        }
        does[kind]()

    def _poll(self, who: Account, ended: threading.Event) -> None:
        since = ""
        while not ended.is_set():
            query = {"since": since, "timeout": "3000"} if since else {}
            try:
                got = self.http.ask(
                    random.choice(self.readers), "GET", f"{CLIENT}/sync", who.token, **query)
            except Answered:
                continue
            since = got["next_batch"]

    def _cpu(self) -> dict[str, float]:
        servers = self.server.servers
        synapse = [psutil.Process(each.pid) for each in self.server.running.values()]
        return {
            "primary": _sum(servers.processes(servers.primary)),
            "standby": _sum(servers.processes(1 - servers.primary)),
            "synapse": _sum(synapse),
            "readers": _sum([psutil.Process(self.server.running[name].pid) for name in WORKERS]),
        }

    def _spent(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for name in WORKERS:
            for (sample, label), value in self.server.metrics(name).items():
                if sample == "synapse_standby_reads_seconds_total":
                    found[label] += value
                elif sample == "synapse_standby_reads_fetches_total":
                    found["fetches"] += value
        return found


def _sum(processes: list[psutil.Process]) -> float:
    """CPU seconds; backends stay, as Synapse keeps its connections."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
