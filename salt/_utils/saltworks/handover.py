"""Synapse moves from one machine to another while the front door is held.

One process conducts it, because each second of it is a second that people wait. Each
step does nothing when it is done already, so a run that died is finished by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from .minions import MachineError
from .plan import Handover

#: Longer than a long poll: then every client has been told to come back anew.
ANNOUNCE_SECONDS = 31


class Caller(Protocol):
    """The part of :class:`saltworks.minions.Machines` that is used."""

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any: ...


class Returned(Exception):
    """The move failed, and Synapse serves again where it was."""


class Stranded(MachineError):
    """The move failed, and it is not certain that the way back is safe: the door stays shut."""


def conduct(
    machines: Caller,
    move: Handover,
    arrived: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Move Synapse, or go back to where it was.

    :param machines: how machines are called.
    :param move: the plan's move.
    :param arrived: records the new place; called before the door opens.
    :param clock: seconds.
    :returns: ``changed``, and the seconds of each step and of the whole ``window``.
    :raises Returned: it failed, and Synapse serves again where it was.
    :raises Stranded: it failed, and the new machine could not be asked whether Synapse
        runs there; two of them on one database would damage it.
    """
    door = machines.call(move.front, "door.status")
    if door["state"] == "open" and door["target"] == move.new_target:
        arrived()
        return {"changed": False}
    if door["state"] != "closed":
        machines.call(move.front, "door.announce", ANNOUNCE_SECONDS)
    begun = clock()
    taken: dict[str, Any] = {"changed": True}
    try:
        taken["close"] = machines.call(move.front, "door.close")["seconds"]
        taken["leave"] = machines.call(move.old, "synapse_move.leave", **move.leave)
        taken["arrive"] = machines.call(move.new, "synapse_move.arrive", **move.arrive)
    except MachineError as error:
        back(machines, move, error)
        raise Returned(
            f"Synapse did not move to {move.new}: {error}. Nothing is lost, it serves on "
            f"{move.old} as before; mend this and run the milestone again"
        ) from error
    arrived()
    taken["open"] = machines.call(move.front, "door.open", move.new_target)["seconds"]
    taken["window"] = round(clock() - begun, 3)
    return taken


def back(machines: Caller, move: Handover, cause: Exception | None = None) -> None:
    """Synapse where it was, and the door open to it; nobody has written at the new place.

    :param cause: why the way back is taken.
    :raises Stranded: the new machine does not say that Synapse is stopped there.
    :raises MachineError: the door was opened to the new place, or the old one does not
        come up.
    """
    door = machines.call(move.front, "door.status")
    if door["state"] == "open" and door["target"] == move.new_target:
        raise MachineError(
            f"the door of {move.front} is open to {move.new}: going back now would lose what "
            "people have written there since; mend what is wrong and go on with the milestone"
        )
    try:
        machines.call(move.new, "synapse_move.stop", move.arrive["service"])
    except MachineError as error:
        raise Stranded(
            f"{f'{cause}; and ' if cause else ''}{move.new} does not say whether Synapse runs "
            f"there ({error}). The door of {move.front} stays shut, clients wait: bring "
            f"{move.new} back or switch it off for good, then run orch.m2 or orch.m2.rollback"
        ) from error
    pulls: list[Any] = []
    machines.call(
        move.old,
        "synapse_move.arrive",
        service=move.leave["service"],
        url=move.old_url,
        pulls=pulls,
    )
    machines.call(move.front, "door.open", move.old_target)
