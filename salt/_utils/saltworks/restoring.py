"""The database's cluster goes back to a time: the door is shut, Synapse stopped, standbys are away.

People wait meanwhile, as they do for a telling, and it is conducted as one: what was stopped is
brought back by state runs, main first, and one that dies is brought to its end by reconcile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import movement, plan, telling, telling_run, workers
from .errors import Problem, Refused
from .minions import MachineError, Machines
from .parts.database import cluster
from .telling import Telling
from .telling_run import Ledger, Way
from .tree import Tree

#: How long machines may take to answer before anything is done, Patroni to stop or start, and
#: to lead again, in seconds.
PING_SECONDS, SERVICE_SECONDS, LEAD_SECONDS = 5, 60, 120

UNIT = "patroni"


def everybody(placement: plan.Placement) -> Telling:
    """All of Synapse's processes stop, and come back with their machines' state runs."""
    machines = {row.machine for row in workers.of(placement).processes.values()}
    stop = {
        name: tuple(telling.services(placement, name)) for name in {placement.synapse, *machines}
    }
    others = tuple(sorted(machines - {placement.synapse}))
    return Telling(stop, ((placement.synapse,), *((others,) if others else ())))


def conducted(
    house: Tree, machines: Machines, primary: str, restore: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A restore of a cluster, while nobody uses it.

    :param primary: the machine that it is made on.
    :param restore: makes it.
    :returns: what ``restore`` did, with ``said`` for all of it.
    :raises Refused: a machine that has to be stopped does not answer; nothing was changed.
    :raises MachineError: it failed; says what stands.
    """
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    told = everybody(placement)
    standbys = [name for name in cluster.running(placement) if name != primary]
    _here(machines, {placement.front, primary, *standbys, *told.machines})
    way = Way(
        front=placement.front,
        target=plan.door_target(cmap, placement, placement.front),
        main=placement.synapse,
        ports=telling.ports(placement, told),
        announce=plan.announce_seconds(cmap),
    )
    done: dict[str, Any] = {}

    def change() -> None:
        # A standby would take over, with what is to be undone.
        _service(machines, standbys, "service.stop")
        try:
            done.update(restore())
        finally:
            _service(machines, standbys, "service.start")
        machines.call(primary, "patroni.streaming", LEAD_SECONDS, bound=2 * LEAD_SECONDS)
        for name in standbys:
            machines.call(primary, "patroni.reinit", name, bound=SERVICE_SECONDS)

    said = telling_run.conduct(machines, way, told, Ledger(house, primary), change)
    copies = f"; {', '.join(standbys)} copy it anew: salt-run database.status" if standbys else ""
    return {**done, "said": f"{done['said']}; {said}{copies}"}


def _here(machines: Machines, names: set[str]) -> None:
    here = machines.answering(sorted(names), PING_SECONDS)
    if away := sorted(names - here):
        what = "has to be stopped, or is needed, for a restore, and does not answer"
        do = "bring its salt-minion back, or drain it; nothing was changed"
        raise Refused("restore", [Problem(name, what, do) for name in away])


def _service(machines: Machines, names: list[str], function: str) -> None:
    answers = machines.calls(names, function, UNIT, bound=SERVICE_SECONDS) if names else {}
    wrong = [str(row) for row in answers.values() if isinstance(row, MachineError)]
    failed = [name for name, row in answers.items() if row is False]
    wrong += [f"{function} {UNIT} failed on {name}" for name in failed]
    if wrong:
        raise MachineError("; ".join(wrong))
