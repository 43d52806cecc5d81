"""A part moves to a machine of its own, and back: ``salt-run switch.to database``."""

from __future__ import annotations

from typing import Any

from saltworks import bank, clustermap, lock, moves, parts, switch
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import Machines
from saltworks.tree import Tree

__opts__: dict[str, Any]


@refusing
def to(name: str) -> dict[str, Any]:
    """Move a part as the plan says; on a failure everything is where it was.

    Everything before it must be done: the orchestration of its milestone does it in order.

    :param name: of :data:`saltworks.parts.PARTS`, such as ``database``.
    :returns: the seconds each step took; ``changed`` is False when it has moved already.
    :raises MachineError: it did not move; where it serves, and what to do.

    CLI Example:

    .. code-block:: bash

        salt-run switch.to database
    """
    house, cmap, part = _known(name)
    lock.refuse_others(house.store, f"moving {name}")
    machine = clustermap.the_machine(cmap, part.ROLE)
    if machine is None:
        wanted = f"add one: <minion id>: {{role: {part.ROLE}, address: <its IP address>}}"
        problem = Problem("cluster.machines", f"no machine has the role {part.ROLE}", wanted)
        raise Refused(f"moving {name}", [problem])
    return _conducted(house, cmap, part, machine)


@refusing
def back(name: str) -> dict[str, Any]:
    """Move a part back to where it was found, as long as that is kept in step.

    :param name: of :data:`saltworks.parts.PARTS`, such as ``database``.

    CLI Example:

    .. code-block:: bash

        salt-run switch.back database
    """
    house, cmap, part = _known(name)
    lock.refuse_others(house.store, f"moving {name} back")
    if name in house.placement(cmap).given_up:
        gone = "mend what is wrong, and go on"
        problem = Problem(name, "where it came from is retired for good", gone)
        raise Refused(f"moving {name} back", [problem])
    return _conducted(house, cmap, part, "")


@refusing
def hold(name: str) -> dict[str, Any]:
    """What has to be done before a part's copy and stops Synapse, in a short window of its own.

    One that an earlier run left open is ended; that of the move itself is left to it.

    :param name: of :data:`saltworks.parts.PARTS`, such as ``database``.
    :returns: the seconds each step took; ``changed`` is False when there is nothing to do.
    :raises MachineError: it was not done; Synapse serves as before, and what to do.

    CLI Example:

    .. code-block:: bash

        salt-run switch.hold database
    """
    house, cmap, part = _known(name)
    lock.refuse_others(house.store, f"holding the door for {name}")
    placement, steps, machines = house.placement(cmap), part.hold(cmap), Machines(__opts__)
    held = placement.held == name
    if not steps.act or (placement.moving and not held):
        return {"changed": False}
    stages: dict[str, dict[str, Any]] = {
        "moving": {"moving": True, "held": name},
        "arrived": {"moving": False},
        "returned": {"moving": False, "held": ""},
    }

    def placed(stage: str) -> None:
        bank.update(house.store, "placement", **stages[stage])

    move = moves.of_hold(cmap, placement, part)
    if held and not placement.moving:
        # An earlier run was through with it, but perhaps for the door.
        ended = switch.conduct(machines, move, placed, arrived=True)
        bank.update(house.store, "placement", held="")
        if ended["changed"]:
            return ended
    asked = None if placement.moving else steps.needed
    if asked and not machines.call(asked.machine, asked.function, **asked.kwargs):
        return {"changed": False}
    taken = switch.conduct(machines, move, placed)
    bank.update(house.store, "placement", held="")
    return taken


def _known(name: str) -> tuple[Tree, clustermap.Map, parts.Part]:
    house = Tree.of(__opts__)
    cmap = house.map()
    if name not in parts.PARTS:
        known = ", ".join(parts.PARTS)
        raise Refused("switch", [Problem(name, "is no part", f"name one of {known}")])
    if cmap is None:
        adopt = "run salt-run adopt.homeserver <minion>"
        raise Refused("switch", [Problem("cluster map", "there is none", adopt)])
    return house, cmap, parts.PARTS[name]


def _conducted(
    house: Tree, cmap: clustermap.Map, part: parts.Part, machine: str
) -> dict[str, Any]:
    placement = house.placement(cmap)
    found: str = getattr(placement, part.NAME)
    arrived = found == machine
    if not arrived and dict(placement.upcoming) != {part.NAME: machine}:
        where = machine or "where it was found"
        problem = Problem(
            part.NAME,
            f"Synapse's configuration for it on {where} is not prepared",
            f"run salt-run state.orchestrate orch.{part.MILESTONE}"
            + ("" if machine else ".rollback"),
        )
        raise Refused(f"moving {part.NAME}", [problem])
    waiting = {part.NAME: found, "upcoming": {part.NAME: machine}}
    places: dict[str, dict[str, Any]] = {
        "moving": {**waiting, "moving": True},
        "arrived": {part.NAME: machine, "upcoming": {}, "moving": False},
        "returned": {**waiting, "moving": False},
    }

    def placed(stage: str) -> None:
        bank.update(house.store, "placement", **places[stage])

    machines = Machines(__opts__)
    move = moves.of_part(cmap, placement, part)
    if not (arrived and placement.moving):
        return switch.conduct(machines, move, placed, arrived)
    # A run elsewhere died on its way: nobody has written yet but a Synapse behind a shut door.
    held = placement.held == part.NAME
    done = switch.back(machines, moves.of_hold(cmap, placement, part) if held else move)
    placed("arrived")
    if held:
        bank.update(house.store, "placement", held="")
    return done
