"""A part of M3 moves to a machine of its own, and back: ``salt-run switch.to database``."""

from __future__ import annotations

from typing import Any

from saltworks import bank, clustermap, owners, parts, plan, switch
from saltworks.errors import Problem, Refused
from saltworks.handover import Returned
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines
from saltworks.tree import Tree

__opts__: dict[str, Any]


@refusing
def to(name: str) -> dict[str, Any]:
    """Move a part as the plan says; on a failure everything is where it was.

    Everything before it must be done: the orchestration ``orch.m3.<part>`` does it in order.

    :param name: ``database``, ``media`` or ``auth``.
    :returns: the seconds each step took; ``changed`` is False when it has moved already.
    :raises MachineError: it did not move; where it serves, and what to do.

    CLI Example:

    .. code-block:: bash

        salt-run switch.to database
    """
    house, cmap, part = _known(name)
    owners.refuse_others(bank.read(house.store, "milestones"), f"moving {name}")
    machine = clustermap.the_machine(cmap, part.ROLE)
    if machine is None:
        wanted = f"add one: <minion id>: {{role: {part.ROLE}, address: <its IP address>}}"
        problem = Problem("cluster.machines", f"no machine has the role {part.ROLE}", wanted)
        raise Refused(f"moving {name}", [problem])
    return _conducted(house, cmap, part, machine)


@refusing
def back(name: str) -> dict[str, Any]:
    """Move a part back to where it was found, as long as that is kept in step.

    :param name: ``database``, ``media`` or ``auth``.

    CLI Example:

    .. code-block:: bash

        salt-run switch.back database
    """
    house, cmap, part = _known(name)
    owners.refuse_others(bank.read(house.store, "milestones"), f"moving {name} back")
    if name in house.placement(cmap).given_up:
        gone = "mend what is wrong, and go on"
        problem = Problem(name, "where it came from is retired for good", gone)
        raise Refused(f"moving {name} back", [problem])
    return _conducted(house, cmap, part, "")


def _known(name: str) -> tuple[Tree, clustermap.Map, parts.Part]:
    house = Tree.of(__opts__)
    cmap = house.map()
    if name not in parts.PARTS:
        known = ", ".join(parts.PARTS)
        raise Refused("switch", [Problem(name, "is no part of M3", f"name one of {known}")])
    if cmap is None:
        adopt = "run salt-run adopt.homeserver <minion>"
        raise Refused("switch", [Problem("cluster map", "there is none", adopt)])
    return house, cmap, parts.PARTS[name]


def _conducted(
    house: Tree, cmap: clustermap.Map, part: parts.Part, machine: str
) -> dict[str, Any]:
    placement = house.placement(cmap)
    arrived = getattr(placement, part.NAME) == machine
    if not arrived and dict(placement.upcoming) != {part.NAME: machine}:
        where = machine or "where it was found"
        problem = Problem(
            part.NAME,
            f"Synapse's configuration for it on {where} is not prepared",
            f"run salt-run state.orchestrate orch.m3.{part.NAME}"
            + ("" if machine else ".rollback"),
        )
        raise Refused(f"moving {part.NAME}", [problem])
    stages: dict[str, dict[str, Any]] = {
        "moving": {"moving": True},
        "arrived": {part.NAME: machine, "upcoming": {}, "moving": False},
        "returned": {"moving": False},
    }

    def placed(stage: str) -> None:
        bank.write(
            house.store, "placement", {**bank.read(house.store, "placement"), **stages[stage]}
        )

    move = plan_of(cmap, placement, part)
    try:
        return switch.conduct(Machines(__opts__), move, placed, arrived=arrived)
    except Returned as error:
        raise MachineError(str(error)) from error


def plan_of(cmap: clustermap.Map, placement: plan.Placement, part: parts.Part) -> switch.Switch:
    """A part's move as things stand."""
    address = clustermap.address(cmap, placement.synapse)
    return switch.Switch(
        part=part.NAME,
        front=placement.front,
        target=plan.door_target(cmap, placement, placement.front),
        synapse=placement.synapse,
        service=plan.SERVICE,
        ports=(plan.PORT,),
        url=f"http://{plan.endpoint(address, plan.PORT)}",
        config=f"{plan.CONFIG_DIR}/homeserver.yaml",
        steps=part.steps(cmap, placement),
    )
