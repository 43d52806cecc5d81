"""What moves in a milestone's window, as the plan says: Synapse (M2), or a part of M3 or M4.

Pure, like the plan; :mod:`saltworks.switch` conducts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import clustermap, plan
from .clustermap import Map
from .parts import Part
from .parts.model import Ask, Steps


@dataclass(frozen=True)
class Place:
    """Where Synapse runs.

    :param machine: minion id.
    :param target: the front door's target for it.
    :param url: base URL that it answers by there.
    """

    machine: str
    target: str
    url: str


@dataclass(frozen=True)
class Move:
    """A move for which Synapse stands still and the front door is held.

    :param what: it, as an operator calls it.
    :param front: the machine whose door is held meanwhile.
    :param old: where Synapse runs.
    :param new: where it runs afterwards; the same place when something else moves.
    :param service: Synapse's unit, without suffix.
    :param ports: ports at the old place whose connections are requests in flight.
    :param announce: seconds for which clients are told of it before.
    :param mend: what helps when it is not certain that the way back is safe.
    :param leave: further arguments of ``synapse_move.leave`` at the old place.
    :param arrive: further arguments of ``synapse_move.arrive`` at the new one, as long as nobody
        can have written there.
    :param steps: what is done between these two, and the way back.
    """

    what: str
    front: str
    old: Place
    new: Place
    service: str
    ports: tuple[int, ...]
    announce: int
    mend: str
    leave: Mapping[str, Any] = field(default_factory=dict)
    arrive: Mapping[str, Any] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)


def of_synapse(cmap: Map) -> Move:
    """The move of M2: Synapse goes from the legacy machine to its own.

    :raises KeyError: when the proxy or Synapse's machine is not declared.
    """
    old = cmap["legacy"]["minion"]
    new, front = clustermap.the_machine(cmap, "synapse"), clustermap.the_machine(cmap, "proxy")
    if new is None or front is None:
        raise KeyError("machines with the roles synapse and proxy")
    database = cmap["synapse"]["database"]
    leave: dict[str, Any] = {}
    arrive: dict[str, Any] = {
        "pulls": [
            {**row, "host": clustermap.address(cmap, old), "key": f"{plan.TRANSFER_DIR}/{name}.key"}
            for name, row in sorted(plan.transfers(cmap).items())
        ]
    }
    if database["engine"] == "sqlite3":
        leave["sqlite"] = {"source": database["path"], "directory": plan.HANDOVER_DIR}
        arrive["sqlite"] = {
            "directory": plan.HANDOVER_DIR,
            "destination": plan.SQLITE_PATH,
            "user": plan.USER,
        }
    return Move(
        what="Synapse",
        front=front,
        old=Place(old, "legacy", f"http://127.0.0.1:{plan.PORT}"),
        new=Place(new, "synapse", _url(cmap, new)),
        service=plan.SERVICE,
        ports=(plan.PORT,),
        announce=plan.announce_seconds(cmap),
        # Two of them on one database would damage it.
        mend=f"{new} does not say whether Synapse runs there; bring {new} back and run orch.m2 or "
        "orch.m2.rollback; or switch it off for good, then salt-run handover.back gone=True",
        leave=leave,
        arrive=arrive,
    )


def of_part(cmap: Map, placement: plan.Placement, part: Part) -> Move:
    """A part's move from where it is recorded: to a machine of its own, or back.

    Synapse stays where it is and takes up its upcoming configuration.
    """
    here = Place(
        placement.synapse,
        plan.door_target(cmap, placement, placement.front),
        _url(cmap, placement.synapse),
    )
    config = {"config": f"{plan.CONFIG_DIR}/homeserver.yaml"}
    steps, again = part.steps(cmap, placement), f"orch.{part.MILESTONE}"
    return Move(
        what=part.NAME,
        front=placement.front,
        old=here,
        new=here,
        service=plan.SERVICE,
        ports=(plan.PORT,),
        announce=plan.announce_seconds(cmap),
        mend=f"mend that machine and run {again}.rollback again"
        if getattr(placement, part.NAME)
        else f"mend that machine and run {again} again, or {again}.rollback",
        # One call takes it up and starts Synapse: people wait for each.
        arrive=config,
        steps=replace(
            steps, undo=(*steps.undo, Ask(here.machine, "synapse_move.put_back", config))
        ),
    )


def of_hold(cmap: Map, placement: plan.Placement, part: Part) -> Move:
    """What a part needs before its copy: Synapse stands still for the steps, and comes back."""
    what = f"{part.NAME} was not made ready for its copy, and"
    return replace(of_part(cmap, placement, part), what=what, arrive={}, steps=part.hold(cmap))


def _url(cmap: Map, machine: str) -> str:
    return f"http://{plan.endpoint(clustermap.address(cmap, machine), plan.PORT)}"
