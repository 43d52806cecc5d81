"""Joins and leaves in random order, and what comes of their figures. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saltworks import joins, worker_table

Json = dict[str, Any]

#: What a join may take on the lab, and how many times Salt's floor and Synapse's start together
#: what is above them may be.
MOST_SECONDS, TIMES = 30.0, 2.0

INVITED, AGAIN = "invited", "comes again"
GENERIC, WRITER = "generic", "stream writer"

HEAD = ("", "", *joins.PHASES, "total s", "Synapse's start s", "above the floors, times")


@dataclass(frozen=True)
class Move:
    """A machine joins, or leaves."""

    machine: str
    joins: bool


@dataclass(frozen=True)
class Join:
    """One join, in seconds.

    phases: as the master recorded them, but `admitted`, which is from the minion's start to the
    registry. total: from the minion's start to the end of the last phase. start: Synapse's own.
    """

    machine: str
    how: str
    phases: Mapping[str, float]
    total: float
    start: float

    @property
    def sort(self) -> str:
        kind = self.machine.rpartition("-")[0]
        streams = worker_table.table().streams.values()
        return WRITER if any(row.writer == kind for row in streams) else GENERIC


def moves(machines: Sequence[str], count: int, chance: random.Random) -> list[Move]:
    """So many joins, and a leave after each, in random order; in the end all have left."""
    inside: set[str] = set()
    found = []
    while count or inside:
        name = chance.choice(sorted(machines if count else inside))
        found.append(Move(name, name not in inside))
        count -= name not in inside
        inside ^= {name}
    return found


def joined(machine: str, how: str, row: Mapping[str, Any], begun: float, start: float) -> Join:
    """A join out of the master's record of it.

    begun: when the minion started, in Unix time. start: Synapse's own, in seconds.
    """
    known = joins.report(row)["phases"]
    total = max(row["stamps"][phase] for phase in known) - begun
    # The registry counts whole seconds.
    admitted = max(0.0, total - sum(known.values()))
    return Join(machine, how, {"admitted": admitted, **known}, total, start)


def own_start(shown: str) -> float:
    """The slowest start among units, from a process's beginning to its being ready, in seconds.

    shown: what `systemctl show` says of ExecMainStartTimestampMonotonic and
    ActiveEnterTimestampMonotonic, a paragraph a unit.
    """
    took = []
    for paragraph in shown.strip().split("\n\n"):
        row = dict(line.split("=", 1) for line in paragraph.splitlines())
        begun, ready = (
            int(row[f"{name}TimestampMonotonic"]) for name in ("ExecMainStart", "ActiveEnter")
        )
        took.append((ready - begun) / 1e6)
    return max(took)


def median(rows: Sequence[Join]) -> Json:
    """The median of some joins, phase by phase and in all."""
    names = [name for name in joins.PHASES if any(name in row.phases for row in rows)]
    return {
        "joins": len(rows),
        "phases": {
            name: round(
                statistics.median(row.phases[name] for row in rows if name in row.phases), 2
            )
            for name in names
        },
        "total_seconds": round(statistics.median(row.total for row in rows), 2),
        "synapse_start_seconds": round(statistics.median(row.start for row in rows), 2),
    }


def report(rows: Sequence[Join], floor: Mapping[str, float], leaves: Sequence[float]) -> Json:
    """What is kept of a run. At its top the joins that are bound: of a generic machine which has
    the release, from its minion's start.

    floor: Salt's own, in seconds: what the actions of a join take with nothing in them.
    """
    groups: dict[str, list[Join]] = {}
    for row in rows:
        groups.setdefault(f"{row.sort}, {row.how}", []).append(row)
    bound = median(groups[f"{GENERIC}, {AGAIN}"])
    floors = sum(floor.values()) + bound["synapse_start_seconds"]
    return {
        **bound,
        "salt_floor_seconds": {name: round(took, 2) for name, took in floor.items()},
        "above_the_floors_times": round((bound["total_seconds"] - floors) / floors, 2),
        "medians": {name: median(found) for name, found in sorted(groups.items())},
        "leave_seconds": round(statistics.median(leaves), 2),
        "each": [
            {"machine": row.machine, "how": row.how, "phases": row.phases, "total": row.total}
            for row in rows
        ],
    }


def table(rows: Sequence[Join], kept: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table with `HEAD`: each join, the medians, Salt's floor, a leave."""
    floor = sum(kept["salt_floor_seconds"].values())
    cells = [
        _cells(row.machine, row.how, row.phases, row.total, row.start, floor) for row in rows
    ]
    for name, found in kept["medians"].items():
        sort, _, how = name.partition(", ")
        total, start = found["total_seconds"], found["synapse_start_seconds"]
        cells.append(_cells(f"median, {sort}", how, found["phases"], total, start, floor))
    none = [""] * len(joins.PHASES)
    words = ", ".join(f"{name} {took:.1f}" for name, took in kept["salt_floor_seconds"].items())
    cells.append(["Salt's floor", words, *none, f"{floor:.1f}", "", ""])
    return [*cells, ["median, leave", "", *none, f"{kept['leave_seconds']:.1f}", "", ""]]


def problems(kept: Mapping[str, Any]) -> list[str]:
    """What in a report is not as it must be, a line each."""
    found = []
    if kept["total_seconds"] > MOST_SECONDS:
        found.append(f"a join takes {kept['total_seconds']} s, at most {MOST_SECONDS:g} s allowed")
    if kept["above_the_floors_times"] > TIMES:
        found.append(
            f"above the floors there is {kept['above_the_floors_times']} times as much, "
            f"at most {TIMES:g} times allowed"
        )
    return found


def _cells(
    machine: str, how: str, phases: Mapping[str, float], total: float, start: float, floor: float
) -> list[str]:
    taken = [f"{phases[name]:.1f}" if name in phases else "" for name in joins.PHASES]
    above = (total - floor - start) / (floor + start)
    return [machine, how, *taken, f"{total:.1f}", f"{start:.1f}", f"{above:.1f}"]
