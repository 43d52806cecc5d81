"""Which processes of Synapse must be restarted when the plan changes, and in which order.

A process must be restarted exactly when what it is told changes, and each is told no more than it
must know (``restarts`` in the worker table). So a worker that only serves requests comes and goes
without a restart, a sender's coming restarts main and the senders, a stream writer's everybody.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from . import workers
from .clustermap import Map
from .plan import SERVICE, Placement
from .workers import Workers

WORKER_UNIT = f"{SERVICE}-worker@"

Action = Literal["stop", "start", "restart"]


@dataclass(frozen=True, order=True)
class Unit:
    """A systemd service on a machine."""

    machine: str
    service: str


@dataclass(frozen=True)
class Step:
    """What is done at the same moment; the next step begins when all of it is done."""

    action: Action
    units: tuple[Unit, ...]


def steps(cmap: Map, old: Placement, new: Placement) -> tuple[Step, ...]:
    """What is to be done between two states of the plan; nothing when nobody is concerned.

    Processes that only the new plan has are started when their machine is set up, those that only
    the old one has are stopped with it. Clients wait at the front door meanwhile.

    Whoever has or gets a duty stops first, all at the same moment: no stream has two writers, no
    destination two senders, and nothing is sent in between (Synapse's docs/workers.md). Main comes
    back before them, because they ask it as they start.
    """
    before, after = workers.of(old), workers.of(new)
    was, will = told(cmap, old, before), told(cmap, new, after)
    concerned = {unit for unit in set(was) & set(will) if was[unit] != will[unit]}
    if not concerned:
        return ()
    main = Unit(new.synapse, SERVICE)
    names = workers.dutiful(before, after) & set(after.processes)
    dutiful = {_unit(after, name) for name in names}
    first = sorted(concerned & (dutiful | {main}))
    found = (
        Step("stop", tuple(first)),
        Step("start", (main,) if main in first else ()),
        Step("start", tuple(unit for unit in first if unit != main)),
        Step("restart", tuple(sorted(concerned - set(first)))),
    )
    return tuple(step for step in found if step.units)


def told(cmap: Map, placement: Placement, found: Workers) -> dict[Unit, str]:
    """What each process is told of the others, as a digest."""
    main = Unit(placement.synapse, SERVICE)
    if not placement.redis:
        return {main: ""}
    shared = _digest(workers.shared_config(cmap, placement, found))
    rows = {
        Unit(row.machine, f"{WORKER_UNIT}{row.name}"): _digest(
            {"shared": shared, "own": workers.process_config(row, found)}
        )
        for row in found.processes.values()
    }
    return {main: _digest(workers.main_config(cmap, placement, found)), **rows}


def _unit(found: Workers, name: str) -> Unit:
    return Unit(found.processes[name].machine, f"{WORKER_UNIT}{name}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
