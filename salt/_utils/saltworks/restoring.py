"""The database's cluster goes back to a time: the door is shut, Synapse stopped, standbys are away.

People wait meanwhile, as they do for a telling, and it is conducted as one: what was stopped is
brought back by state runs, main first, and one that dies is brought to its end by reconcile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from . import movement, plan, telling, telling_run, workers
from .errors import Problem, Refused
from .minions import MachineError, Machines
from .parts.database import backup, cluster
from .telling import Telling
from .telling_run import Ledger, Way
from .tree import Tree

#: How long machines may take to answer before anything is done, Patroni to stop or start and to
#: take an order, and to lead again, in seconds.
PING_SECONDS, SERVICE_SECONDS, LEAD_SECONDS = 5, 60, 120

#: A Patroni that has just started is no member yet: how often it is tried again, in seconds.
AGAIN_SECONDS = 2



def everybody(placement: plan.Placement) -> Telling:
    """All of Synapse's processes stop, and come back with their machines' state runs."""
    machines = {row.machine for row in workers.of(placement).processes.values()}
    stop = {
        name: tuple(telling.services(placement, name)) for name in {placement.synapse, *machines}
    }
    others = tuple(sorted(machines - {placement.synapse}))
    return Telling(stop, ((placement.synapse,), *((others,) if others else ())))


def conducted(
    house: Tree,
    machines: Machines,
    primary: str,
    target: str,
    restore: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """A restore of a cluster, while nobody uses it.

    :param primary: the machine that it is made on.
    :param target: what it goes back to.
    :param restore: makes it.
    :returns: what ``restore`` did, with ``said`` for all of it: what failed once the database was
        restored, too, as that is not taken back. Without changes where this was done before.
    :raises Refused: a machine that has to be stopped does not answer; nothing was changed.
    :raises MachineError: it failed; says what stands.
    """
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    told = everybody(placement)
    standbys = [name for name in cluster.running(placement) if name != primary]
    before = machines.call(primary, "pgpitr.kept", bound=SERVICE_SECONDS)
    if before["stands"] and before["target"] == target:
        # Whoever made it may have died before they ran again.
        failed = _service(machines, standbys, "service.start")
        return {"said": "; ".join([*_later(failed), again(primary, target)]), "changes": {}}
    _here(machines, {placement.front, primary, *standbys, *told.machines})
    way = Way(
        front=placement.front,
        target=plan.door_target(cmap, placement, placement.front),
        main=placement.synapse,
        ports=telling.ports(placement, told),
        announce=plan.announce_seconds(cmap),
    )
    done: dict[str, Any] = {}
    wrong: list[str] = []

    def change() -> None:
        try:
            # A standby would take over, with what is to be undone.
            if failed := _service(machines, standbys, "service.stop"):
                raise MachineError("; ".join(failed))
            done.update(restore())
        except (MachineError, Refused) as error:
            failed = _service(machines, standbys, "service.start")
            raise MachineError("; ".join([str(error), *failed])) from error
        wrong.extend(_copied(machines, primary, standbys))

    said = telling_run.conduct(machines, way, told, Ledger(house, primary), change)
    copies = f"; {', '.join(standbys)} copy it anew: salt-run database.status" if standbys else ""
    return {**done, "said": "; ".join([done["said"], *_later(wrong), f"{said}{copies}"])}


def again(primary: str, target: str) -> str:
    """In words: nothing was done, as this was the last restore, and what to do for another."""
    do = f"salt {primary} pgpitr.forget, to do it once more"
    return f"{primary}: was restored to {target} before; {do}"


def _later(wrong: list[str]) -> list[str]:
    return [f"later: {words}" for words in wrong]


def _copied(machines: Machines, primary: str, standbys: list[str]) -> list[str]:
    """Standbys run again, and make new copies.

    :returns: what went wrong: the database is restored, whatever they do.
    """
    wrong = _service(machines, standbys, "service.start")
    try:
        machines.call(primary, "patroni.streaming", LEAD_SECONDS, bound=2 * LEAD_SECONDS)
    except MachineError as error:
        wrong.append(str(error))
    end = time.monotonic() + SERVICE_SECONDS
    for name in standbys:
        if failed := _reinit(machines, primary, name, end):
            wrong.append(f"{failed}: salt-run database.reinit {name}")
    return wrong


def _reinit(machines: Machines, primary: str, standby: str, end: float) -> str:
    """Its Patroni may be just starting: as long as there is time it is tried again.

    :param end: until when, by the monotonic clock.
    :returns: why not, in the end.
    """
    while True:
        try:
            machines.call(primary, "patroni.reinit", standby, bound=SERVICE_SECONDS)
        except MachineError as error:
            if time.monotonic() >= end:
                return str(error)
            time.sleep(AGAIN_SECONDS)
        else:
            return ""


def _here(machines: Machines, names: set[str]) -> None:
    here = machines.answering(sorted(names), PING_SECONDS)
    if away := sorted(names - here):
        what = "has to be stopped, or is needed, for a restore, and does not answer"
        do = "bring its salt-minion back, or drain it; nothing was changed"
        raise Refused("restore", [Problem(name, what, do) for name in away])


def _service(machines: Machines, names: list[str], function: str) -> list[str]:
    """Patroni on machines is started, or stopped.

    :returns: what went wrong.
    """
    try:
        answers = {}
        if names:
            answers = machines.calls(names, function, backup.UNIT, bound=SERVICE_SECONDS)
    except MachineError as error:
        return [str(error)]
    wrong = [str(row) for row in answers.values() if isinstance(row, MachineError)]
    failed = [name for name, row in answers.items() if row is False]
    return wrong + [f"{function} {backup.UNIT} failed on {name}" for name in failed]
