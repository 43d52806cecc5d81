"""Synapse's move to its own machine (M2), and the way back."""

from __future__ import annotations

import socket
from typing import Any

from saltworks import bank, clustermap, lock, moves, slices, switch
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import Machines
from saltworks.tree import Tree

#: Longer than a long poll, which is logged when it ends.
QUIET_SECONDS = 60


@refusing
def synapse() -> dict[str, Any]:
    """Move Synapse as the plan says; on a failure it is back where it was.

    :returns: the seconds each step took; ``changed`` is False when it has moved already.
    :raises saltworks.errors.Refused: another process works on a milestone.
    :raises MachineError: it did not move; where it serves, and what to do.

    CLI Example:

    .. code-block:: bash

        salt-run handover.synapse
    """
    house, move = _move()
    lock.refuse_others(house.store, "handover")
    places = {
        "moving": {"synapse": move.old.machine, "moving": True},
        "arrived": {"synapse": move.new.machine, "moving": False},
        "returned": {"synapse": move.old.machine, "moving": False},
    }

    def placed(stage: str) -> None:
        bank.update(house.store, "placement", **places[stage])

    arrived = _has_arrived(house, move)
    return switch.conduct(Machines(__opts__), move, placed, arrived)  # type: ignore[name-defined]


@refusing
def back(gone: bool = False) -> str:
    """Synapse serves where it was before the move, as long as nobody wrote at the new place.

    :param gone: the new machine is off and stays off; Synapse on two machines at once
        would damage the database.
    :raises saltworks.errors.Refused: another process works on a milestone.

    CLI Example:

    .. code-block:: bash

        salt-run handover.back
    """
    house, move = _move()
    lock.refuse_others(house.store, "handover")
    arrived = _has_arrived(house, move)
    switch.back(Machines(__opts__), move, arrived, gone)  # type: ignore[name-defined]
    bank.update(house.store, "placement", synapse=move.old.machine, moving=False)
    return f"Synapse serves on {move.old.machine}"


@refusing
def name_moved() -> str:
    """Refuse as long as the public name leads elsewhere, or clients come by the old machine.

    CLI Example:

    .. code-block:: bash

        salt-run handover.name_moved
    """
    house, move = _move()
    cmap = house.map()
    assert cmap is not None
    public, wanted = cmap["public"], clustermap.address(cmap, move.front)
    wrong = []
    found = resolved(public["name"])
    if found != {wanted}:
        where = ", ".join(sorted(found)) or "nowhere"
        point = f"point {public['name']} to {wanted}, then wait for its TTL"
        wrong.append(Problem(public["name"], f"leads to {where}", point))
    idle = Machines(__opts__).call(  # type: ignore[name-defined]
        move.old.machine, "nginx_config.idle_seconds", slices.SITE
    )
    if idle is not None and idle < QUIET_SECONDS:
        came = f"a client came by it {idle:.0f} s ago"
        wait = f"wait until nobody has for {QUIET_SECONDS} s, then arm and run this again"
        wrong.append(Problem(move.old.machine, came, wait))
    if wrong:
        raise Refused("M2.finalize", wrong)
    return f"{public['name']} leads to {wanted}, nobody comes by {move.old.machine}"


def resolved(name: str) -> set[str]:
    """The addresses that a name leads to, none when it leads nowhere."""
    try:
        return {str(row[4][0]) for row in socket.getaddrinfo(name, None)}
    except socket.gaierror:
        return set()


def _move() -> tuple[Tree, moves.Move]:
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    cmap = house.map()
    if cmap is None or not all(clustermap.the_machine(cmap, r) for r in ("proxy", "synapse")):
        where = "write machines with the roles proxy and synapse into the cluster map"
        raise Refused("handover", [Problem("cluster.machines", "nowhere to move to", where)])
    return house, moves.of_synapse(cmap)


def _has_arrived(house: Tree, move: moves.Move) -> bool:
    return bool(bank.read(house.store, "placement").get("synapse") == move.new.machine)
