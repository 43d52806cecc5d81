"""Synapse moves from one machine to another while the front door is held.

One process conducts it, because each second of it is a second that people wait. Each
step does nothing when it is done already, so a run that died is finished by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
    placed: Callable[[str], None],
    arrived: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Move Synapse, or go back to where it was.

    :param machines: how machines are called.
    :param move: the plan's move.
    :param placed: records how far it has come: ``moving`` before anything is touched,
        ``arrived`` before the door opens to the new place, ``returned`` after the way back.
    :param arrived: an earlier run recorded that; people may have written there since, so
        there is no way back.
    :param clock: seconds.
    :returns: ``changed``, and the seconds of each step and of the whole ``window``.
    :raises Returned: it failed, and Synapse serves again where it was.
    :raises Stranded: it failed, and the new machine could not be asked whether Synapse
        runs there; two of them on one database would damage it.
    :raises MachineError: nothing was touched yet, or it has arrived and the next run goes on.
    """
    door = machines.call(move.front, "door.status")
    if _leads_to(door, move.new_target):
        placed("arrived")
        return {"changed": False}
    begun = clock()
    taken: dict[str, Any] = {"changed": True}
    if arrived:
        row = {name: move.arrive[name] for name in ("service", "url")}
        taken["arrive"] = machines.call(move.new, "synapse_move.arrive", pulls=[], **row)
    else:
        if door["state"] != "closed":
            machines.call(move.front, "door.announce", ANNOUNCE_SECONDS)
        placed("moving")
        begun = clock()
        _move(machines, move, placed, taken)
        placed("arrived")
    taken["open"] = _opened(machines, move, placed)
    taken["window"] = round(clock() - begun, 3)
    return taken


def _opened(machines: Caller, move: Handover, placed: Callable[[str], None]) -> float:
    try:
        return float(machines.call(move.front, "door.open", move.new_target)["seconds"])
    except MachineError:
        if not _leads_to(machines.call(move.front, "door.status"), move.new_target):
            # Nobody got through, so there is a way back still.
            placed("moving")
        raise


def _leads_to(door: Mapping[str, Any], target: str) -> bool:
    return bool(door["state"] == "open" and door["target"] == target)


def _move(
    machines: Caller, move: Handover, placed: Callable[[str], None], taken: dict[str, Any]
) -> None:
    try:
        taken["close"] = machines.call(move.front, "door.close")["seconds"]
        taken["leave"] = machines.call(move.old, "synapse_move.leave", **move.leave)
        taken["arrive"] = machines.call(move.new, "synapse_move.arrive", **move.arrive)
    except MachineError as error:
        back(machines, move, cause=error)
        placed("returned")
        raise Returned(
            f"Synapse did not move to {move.new}: {error}. Nothing is lost, it serves on "
            f"{move.old} as before; mend this and run the milestone again"
        ) from error


def back(
    machines: Caller,
    move: Handover,
    arrived: bool = False,
    gone: bool = False,
    cause: Exception | None = None,
) -> None:
    """Synapse where it was, and the door open to it; nobody has written at the new place.

    :param arrived: it is recorded that Synapse arrived at the new place.
    :param gone: the operator vouches that the new machine is off for good.
    :param cause: why the way back is taken.
    :raises Stranded: the new machine does not say that Synapse is stopped there.
    :raises MachineError: the door was opened to the new place, or the old one does not
        come up.
    """
    door = machines.call(move.front, "door.status")
    if arrived or _leads_to(door, move.new_target):
        raise MachineError(
            f"Synapse has moved to {move.new}: going back now would lose what "
            "people have written there since; mend what is wrong and go on with the milestone"
        )
    if _leads_to(door, move.old_target):
        return
    if not gone:
        _stopped(machines, move, cause)
    pulls: list[Any] = []
    machines.call(
        move.old,
        "synapse_move.arrive",
        service=move.leave["service"],
        url=move.old_url,
        pulls=pulls,
        enable=True,
    )
    machines.call(move.front, "door.open", move.old_target)


def _stopped(machines: Caller, move: Handover, cause: Exception | None) -> None:
    try:
        machines.call(move.new, "synapse_move.stop", move.arrive["service"])
    except MachineError as error:
        raise Stranded(
            f"{f'{cause}; and ' if cause else ''}{move.new} does not say whether Synapse runs "
            f"there ({error}). The door of {move.front} stays shut, clients wait: bring "
            f"{move.new} back and run orch.m2 or orch.m2.rollback; or switch it off for good, "
            "then salt-run handover.back gone=True"
        ) from error
