"""Who must be told of a member, whether they answer, and what is done when they do not.

:mod:`saltworks.telling` says who is concerned, :mod:`saltworks.telling_run` tells them; here it is
asked beforehand who answers Salt, and decided without whom it goes on. All of it within the
cluster's lock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from . import bank, clustermap, movement, parts, plan, registry, telling, telling_run
from .errors import Problem, Refused
from .minions import BOUND_SECONDS, QUEUE, ROLE_SLS, MachineError, Machines, bring_modules
from .parts.database import cluster
from .plan import Placement
from .telling_run import Ledger, Way
from .tree import Tree

#: How long machines may take to answer before others are told of something, in seconds, and those
#: that say that they are still at it.
PING_SECONDS, PATIENCE_SECONDS = 3, 2


def told(
    house: Tree, machines: Machines, minion: str, state: registry.State, phase: str = ""
) -> dict[str, Any]:
    """The registry says a member's state, and those who must know of it have been told.

    :param phase: of a join, over when the registry says it.
    :returns: ``said`` and ``changes``, as a step of an orchestration wants them.
    :raises Refused: somebody who must know does not answer; nothing was changed.
    """
    refuse_while_told(house, state)
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    concerned = telling.plan(cmap, placement, minion, state)
    if not concerned.machines:
        return movement.moved(house, minion, state, phase)
    ledger, lost = Ledger(house, minion), state == "gone"
    wanted = {placement.front, *concerned.machines}
    away = wanted - _answering(machines, wanted)
    if away and (not lost or placement.front in away):
        what = f"must be told that {minion} is {state}, and does not answer"
        do = "bring its salt-minion back; nothing was changed"
        raise Refused(state, [Problem(name, what, do) for name in sorted(away)])
    # Nobody waits for those: what was lost others do in any case, and they hear of it later.
    ledger.late(concerned.of(away))
    concerned = concerned.without(away)
    done: dict[str, Any] = {}
    if not concerned.machines:
        done = movement.moved(house, minion, state, phase)
        return {**done, "said": f"{_missing(away)}{done['said']}"}
    said = telling_run.conduct(
        machines,
        _way(cmap, placement, concerned, 0 if lost else plan.announce_seconds(cmap)),
        concerned,
        ledger,
        lambda: done.update(movement.registered(house, minion, state)),
    )
    movement.noted(house, minion, state, phase)
    return {**done, "said": f"{_missing(away)}{done['said']}; {said}"}


def finished(house: Tree, machines: Machines, minion: str) -> dict[str, Any]:
    """Others have been told to the end of what they were being told of.

    Whoever has died meanwhile is left out, but for the main process.

    :param minion: a member of whom others are being told.
    :raises Refused: the main process's machine does not answer; the door stays shut.
    """
    rows = bank.read(house.store, telling.TOLD)
    cmap = movement.map_of(house)
    concerned = telling.left(house.placement(cmap), rows).machines
    here = _answering(machines, concerned | set(rows))
    changes = {}
    for name, member in movement.members_of(house).items():
        if name in rows and name not in here and member.state == "joining":
            # It was coming, and is away: when it is back it comes again.
            changes.update(movement.moved(house, name, "gone")["changes"])
    placement = house.placement(cmap)
    away = concerned - here
    if placement.synapse in away:
        # It may run with what it was told before, and then two processes write the same stream.
        what = "the main process must be told, and its machine does not answer"
        do = f"bring its salt-minion back; the door of {placement.front} stays shut until then"
        raise Refused("telling", [Problem(placement.synapse, what, do)])
    ledger = Ledger(house, minion)
    ledger.late(telling.left(placement, rows).of(away))
    left = telling.left(placement, rows, away)
    said = telling_run.finish(machines, _way(cmap, placement, left), left, ledger)
    return {"said": f"{_missing(away)}{said}", "changes": changes or {"told": sorted(rows)}}


def told_later(house: Tree, machines: Machines, machine: str) -> dict[str, Any]:
    """A machine that was away when others were told knows how things stand now.

    :raises MachineError: it could not be told; it is tried again, ever later.
    """
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    beside = cluster.neighbours(cmap, placement)
    late = telling.late(placement, bank.read(house.store, telling.LATE), beside)
    ledger = Ledger(house, machine)
    if machine not in late:
        ledger.heard([machine])
        return {"said": f"{machine} need not be told of anything", "changes": {}}
    bring_modules(machines, [machine])
    services = tuple(late[machine]["services"])
    if services:
        concerned = telling.Telling({machine: services}, ((machine,),))
        way = _way(cmap, placement, concerned)
        try:
            said = telling_run.conduct(machines, way, concerned, ledger, lambda: None)
        except telling_run.Untouched:
            ledger.late({machine: services}, failed=True)
            raise
        return {"said": said, "changes": {"told": [machine]}}
    try:
        machines.call(machine, "state.sls", ROLE_SLS, bound=BOUND_SECONDS, queue=QUEUE)
    except MachineError:
        ledger.late({machine: ()}, failed=True)
        raise
    ledger.heard([machine])
    return {"said": f"{machine} has been told", "changes": {"told": [machine]}}


def refuse_while_told(house: Tree, what: str, of: Collection[str] = ()) -> None:
    """What must wait until others have been told of members is refused.

    :param of: these members; of any when it is empty.
    :raises Refused: others are being told.
    """
    rows = set(bank.read(house.store, telling.TOLD))
    if wrong := parts.telling_problems(rows & set(of) if of else rows):
        raise Refused(what, wrong)


def _answering(machines: Machines, wanted: Collection[str]) -> set[str]:
    return machines.answering(sorted(wanted), PING_SECONDS, PATIENCE_SECONDS) if wanted else set()


def _missing(away: Collection[str]) -> str:
    return f"{', '.join(sorted(away))} cannot be told yet; " if away else ""


def _way(
    cmap: clustermap.Map, placement: Placement, concerned: telling.Telling, announce: int = 0
) -> Way:
    return Way(
        front=placement.front,
        target=plan.door_target(cmap, placement, placement.front),
        main=placement.synapse,
        ports=telling.ports(placement, concerned),
        announce=announce,
    )
