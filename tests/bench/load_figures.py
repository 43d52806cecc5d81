"""What a load of virtual users is, and what comes of what they saw. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

#: The 80/20 of rooms: one in five is busy and gets four messages of five.
BUSY_ROOMS, BUSY_MESSAGES = 0.2, 0.8

SYNAPSE, GENERATOR, OTHERS = "Synapse, main", "the load itself", "everything else"


@dataclass(frozen=True)
class Profile:
    """Virtual users and their rooms. Each is in one busy room and in two quiet ones."""

    users: int = 16
    rooms: int = 10

    @property
    def busy(self) -> int:
        return max(1, round(self.rooms * BUSY_ROOMS))

    def members(self) -> list[list[int]]:
        """The users of each room, by number; the busy rooms come first."""
        quiet = self.rooms - self.busy
        share = max(2, 2 * self.users // max(1, quiet))
        busy = [[*range(number, self.users, self.busy)] for number in range(self.busy)]
        starts = [number * self.users // max(1, quiet) for number in range(quiet)]
        return busy + [
            [(start + step) % self.users for step in range(share)] for start in starts
        ]

    def room_for(self, user: int, chance: random.Random) -> int:
        """Into which of his rooms somebody writes next."""
        mine = [room for room, users in enumerate(self.members()) if user in users]
        busy = [room for room in mine if room < self.busy]
        quiet = [room for room in mine if room >= self.busy]
        return chance.choice(busy if not quiet or chance.random() < BUSY_MESSAGES else quiet)


@dataclass(frozen=True)
class Sent:
    """A message: by whom, into which room, when it was sent and when that was answered."""

    sender: int
    room: int
    begun: float
    answered: float


@dataclass(frozen=True)
class Seen:
    """A message, by its number, in the answer to somebody's long poll."""

    number: int
    user: int
    at: float


def measured(
    sent: Mapping[int, Sent],
    seen: Sequence[Seen],
    members: Sequence[Sequence[int]],
    window: tuple[float, float],
) -> Json:
    """What happened in a window of time: messages answered in it, and how long those that were
    sent in it took to each of the other members, in milliseconds.

    missing: deliveries that did not come.
    """
    begin, end = window
    first: dict[tuple[int, int], float] = {}
    for row in seen:
        key = row.number, row.user
        first[key] = min(row.at, first.get(key, row.at))
    wanted = [
        (message.begun, first.get((number, user)))
        for number, message in sent.items()
        if begin <= message.begun < end
        for user in members[message.room]
        if user != message.sender
    ]
    took = [round((at - begun) * 1000, 1) for begun, at in wanted if at is not None]
    missing = len(wanted) - len(took)
    answered = sum(begin <= message.answered < end for message in sent.values())
    return {"seconds": end - begin, "messages": answered, "latencies": took, "missing": missing}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


@dataclass(frozen=True)
class Figures:
    """All rounds of one load on one server together.

    rates: messages a second, each round's. latencies in ms. cpu: seconds by process.
    """

    rates: tuple[float, ...]
    p50: float
    p95: float
    missing: int
    troubles: int
    messages: int
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def pooled(runs: Sequence[Mapping[str, Any]]) -> Figures:
    """Rounds of the same load on the same server, each as `measured` gives it, with `troubles`
    by cause and `cpu` by process."""
    took = [value for run in runs for value in run["latencies"]]
    cpu: dict[str, float] = {}
    for run in runs:
        for name, seconds in run["cpu"].items():
            cpu[name] = cpu.get(name, 0.0) + seconds
    return Figures(
        rates=tuple(run["messages"] / run["seconds"] for run in runs),
        p50=percentile(took, 50),
        p95=percentile(took, 95),
        missing=sum(run["missing"] for run in runs),
        troubles=sum(sum(run["troubles"].values()) for run in runs),
        messages=sum(run["messages"] for run in runs),
        cpu=cpu,
    )


def process_of(unit: str) -> str:
    """Which process a unit is, as the table names it."""
    name = unit.removesuffix(".service")
    if name == "synapse":
        return SYNAPSE
    if name.startswith("synapse-worker@"):
        return f"Synapse, {name.partition('@')[2]}"
    for known, shown in (("postgresql", "PostgreSQL"), ("nginx", "nginx"), ("redis", "Redis")):
        if name.startswith(known):
            return shown
    return OTHERS


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds by process between two looks at all units (`machine/unit` to seconds)."""
    found: dict[str, float] = {}
    for name, seconds in after.items():
        process = process_of(name.partition("/")[2])
        found[process] = found.get(process, 0.0) + seconds - before.get(name, 0.0)
    return found


def cpu_rows(figures: Sequence[Figures]) -> list[list[str]]:
    """A row a process: of each server its CPU seconds, and those for a thousand messages."""
    names = sorted({name for row in figures for name in row.cpu} - {OTHERS, GENERATOR})
    rows = []
    for name in [*names, OTHERS, GENERATOR]:
        cells = [name]
        for row in figures:
            seconds = row.cpu.get(name)
            each = [seconds, seconds / row.messages * 1000] if seconds is not None else []
            cells += [f"{value:.1f}" for value in each] or ["", ""]
        rows.append(cells)
    return rows
