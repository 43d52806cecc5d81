"""A telling: Synapse's processes learn, by a restart, who writes streams and has duties.

Which processes those are and in which order is :mod:`saltworks.restarts`'s; here it becomes what
is stopped at once, and the machines whose state runs bring it back with what it is told now.
:mod:`saltworks.telling_run` conducts it. Pure, like the plan.

What is being told stands in the record ``told``, from before the door is shut until it is open
again: member to ``stop``, ``apply`` and ``changed``, whether the registry says already what it is
to say. Who could not be told stands in the record ``late``, and is told when it answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import registry, restarts, worker_table, workers
from .clustermap import Map
from .plan import PORT, SERVICE, Placement

#: Names of the records in the bank.
TOLD, LATE = "told", "late"

#: Who comes into a state now is there the shortest: later than any time of the registry.
LATEST = "9999-12-31T23:59:59Z"

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Telling:
    """What is to be done while clients wait.

    :param stop: machine to services, all at the same moment, before the registry changes.
    :param apply: machines whose state runs follow, one group after the other.
    """

    stop: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apply: tuple[tuple[str, ...], ...] = ()

    @property
    def machines(self) -> set[str]:
        """All that have to answer; none when nobody is concerned."""
        return {*self.stop, *(machine for group in self.apply for machine in group)}

    def without(self, machines: Collection[str]) -> Telling:
        """The same, without machines."""
        groups = (tuple(name for name in group if name not in machines) for group in self.apply)
        stop = {name: services for name, services in self.stop.items() if name not in machines}
        return Telling(stop, tuple(group for group in groups if group))

    def of(self, machines: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Services that are stopped on machines of it; none for one that only has a state run."""
        there = sorted(self.machines & set(machines))
        return {name: self.stop.get(name, ()) for name in there}

    def as_row(self) -> dict[str, Any]:
        """Its row of the record, as long as the registry does not say the new."""
        return {
            "stop": {name: list(services) for name, services in self.stop.items()},
            "apply": [list(group) for group in self.apply],
            "changed": False,
        }


def plan(cmap: Map, placement: Placement, minion: str, state: registry.State) -> Telling:
    """Who must be told when a member comes into a state."""
    after = replace(
        placement,
        members=tuple(
            replace(row, state=state, since=LATEST)
            if row.minion == minion and row.state != state
            else row
            for row in placement.members
        ),
    )
    leaves = state != "ready"
    stop: dict[str, set[str]] = {}
    apply: set[str] = set()
    for step in restarts.steps(cmap, placement, after):
        for unit in step.units:
            # Who goes is not brought back.
            if step.action == "stop" or (leaves and unit.machine == minion):
                stop.setdefault(unit.machine, set()).add(unit.service)
        if step.action != "stop":
            apply |= {unit.machine for unit in step.units} - ({minion} if leaves else set())
    stops = {name: tuple(sorted(rows)) for name, rows in stop.items()}
    return Telling(stops, _groups(apply, placement.synapse))


def left(placement: Placement, rows: Rows, away: Collection[str] = ()) -> Telling:
    """What tellings have left to do that did not come to their end, as things stand today.

    Of what they were to do only that is kept which still runs by today's plan, on machines that
    answer; who has gone since keeps nobody waiting.

    :param rows: the record.
    :param away: machines that do not answer.
    """
    runs = _running(placement)
    leaving = {row.minion for row in placement.members if row.state == "draining"}
    stop: dict[str, set[str]] = {}
    machines: set[str] = set()
    for row in rows.values():
        for machine, services in row["stop"].items():
            stop.setdefault(machine, set()).update(runs.get(machine, set()) & set(services))
        machines.update(row["stop"], *row["apply"])
    stop = {name: services for name, services in stop.items() if services and name not in away}
    here = {name for name in machines if name in runs} - set(away) - leaving
    return Telling(
        {name: tuple(sorted(services)) for name, services in sorted(stop.items())},
        _groups(here, placement.synapse),
    )


def late(
    placement: Placement, rows: Rows, beside: Collection[str] = ()
) -> dict[str, Mapping[str, Any]]:
    """Of those that were to be told later, those whom it still concerns.

    :param rows: the record ``late``.
    :param beside: machines that run nothing of Synapse, and are told of others: by their role.
    """
    runs = {**{name: set[str]() for name in beside}, **_running(placement)}
    return {
        name: {**row, "services": sorted(runs[name] & set(row.get("services", ())))}
        for name, row in rows.items()
        if name in runs
    }


def stopped(rows: Rows) -> tuple[str, ...]:
    """Machines on which services stay stopped until the registry says the new."""
    return tuple(sorted({
        name for row in rows.values() if not row.get("changed") for name in row["stop"]
    }))  # fmt: skip


def ports(placement: Placement, told: Telling) -> dict[str, list[int]]:
    """Where nothing may be in flight any more when processes are stopped or restarted.

    Without long polls, which nginx asks again: those have a port of their own on the main process,
    and are most of what their kinds of workers are asked.

    :returns: machine to ports.
    """
    groups = worker_table.table().groups
    found = {machine: [PORT] for machine, rows in told.stop.items() if SERVICE in rows}
    for row in workers.of(placement).processes.values():
        stopped = f"{restarts.WORKER_UNIT}{row.name}" in told.stop.get(row.machine, ())
        restarted = row.machine in told.machines and row.machine not in told.stop
        if stopped or (restarted and not groups[row.kind].poll_seconds):
            found.setdefault(row.machine, []).append(row.port)
    return found


def services(placement: Placement, machine: str) -> list[str]:
    """All of Synapse's services that run on a machine by the plan."""
    return sorted(_running(placement).get(machine, ()))


def _groups(machines: set[str], main: str) -> tuple[tuple[str, ...], ...]:
    """Main's first: the others ask it as they start. These at once: people wait."""
    groups = (machines & {main}, machines - {main})
    return tuple(tuple(sorted(group)) for group in groups if group)


def _running(placement: Placement) -> dict[str, set[str]]:
    runs = {placement.synapse: {SERVICE}}
    for row in workers.of(placement).processes.values():
        runs.setdefault(row.machine, set()).add(f"{restarts.WORKER_UNIT}{row.name}")
    return runs
