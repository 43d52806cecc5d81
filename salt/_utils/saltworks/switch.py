"""Something moves while Synapse stands still and the front door is held: every window of M2 and M3.

One process conducts it, because each second of it is a second that people wait. Each step does
nothing when it is done already, so a run that died is finished, or taken back, by the next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from .minions import MachineError
from .moves import Move, Place
from .parts.model import Ask

#: After how long without an answer a machine is asked whether it still works on a step: one
#: that has died is to be noticed while people still wait.
STEP_SECONDS = 5


class Caller(Protocol):
    """The part of :class:`saltworks.minions.Machines` that is used."""

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any: ...


class Returned(MachineError):
    """The move failed, and everything is where it was and serves."""


class Stranded(MachineError):
    """The move failed, and it is not certain that the way back is safe: the door stays shut."""


def conduct(
    machines: Caller,
    move: Move,
    placed: Callable[[str], None],
    arrived: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Move, or go back to where everything was.

    :param machines: how machines are called.
    :param placed: records how far it has come: ``moving`` before anything is touched,
        ``arrived`` before the door opens, ``returned`` after the way back, and when
        it is not ready.
    :param arrived: an earlier run recorded that; people may have written since, so what is left
        is to open the door.
    :param clock: seconds.
    :returns: ``changed``, the seconds of each step and of the whole ``window``; answers of
        the move's own steps are under ``steps``, by function, but for those that were only
        given to a later one.
    :raises Returned: it failed, and everything is where it was.
    :raises Stranded: it failed, and it is not certain that the way back is safe.
    :raises MachineError: nothing was touched yet, or it has arrived and the next run goes on.
    """
    door = machines.call(move.front, "door.status")
    if _leads_to(door, move.new) and (arrived or _door_moves(move)):
        placed("arrived")
        return {"changed": False}
    taken: dict[str, Any] = {"changed": True}
    if not arrived:
        if door["state"] != "closed":
            _ready(machines, move, door, placed)
            machines.call(move.front, "door.announce", move.announce)
        placed("moving")
    begun = clock()
    if arrived:
        with _behind_the_door(move):
            taken["arrive"] = _started(machines, move, move.new)
    else:
        _move(machines, move, placed, taken)
    placed("arrived")
    taken["open"] = _opened(machines, move, placed, arrived)
    taken["window"] = round(clock() - begun, 3)
    return taken


def back(
    machines: Caller,
    move: Move,
    arrived: bool = False,
    gone: bool = False,
    cause: MachineError | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Everything where it was and the door open, after a move that failed or died.

    :param arrived: it is recorded that the move arrived.
    :param gone: the operator vouches that the new place's machine is off for good.
    :param cause: why the way back is taken.
    :param clock: seconds.
    :returns: ``changed``, the seconds of the ``window`` and, in words, what was ``tried`` as well.
    :raises Stranded: Synapse could not be stopped at the new place, or a step not be undone.
    :raises MachineError: people may have written at the new place, or Synapse does not come up
        at the old one.
    """
    begun = clock()
    with _behind_the_door(move, cause):
        door = machines.call(move.front, "door.status")
    if arrived or (_door_moves(move) and _leads_to(door, move.new)):
        raise MachineError(
            f"{move.what} has moved to {move.new.machine}: going back now would lose what "
            "people have written there since; mend what is wrong and go on with the milestone"
        )
    if _leads_to(door, move.old):
        return {"changed": False}
    tried = []
    try:
        if not gone:
            machines.call(move.new.machine, "synapse_move.stop", move.service)
        tried = [*filter(None, (_tried(machines, step) for step in move.steps.tried))]
        for step in move.steps.undo:
            _call(machines, step, {})
    except MachineError as error:
        raise Stranded(
            f"{f'{cause}; and ' if cause else ''}the way back failed: {error}. The door of "
            f"{move.front} stays shut, clients wait: {move.mend}"
        ) from error
    with _behind_the_door(move, cause):
        _started(machines, move, move.old)
        machines.call(move.front, "door.open", move.old.target)
    more = {"tried": tried} if tried else {}
    return {"changed": True, "window": round(clock() - begun, 3), **more}


def _ready(
    machines: Caller, move: Move, door: Mapping[str, Any], placed: Callable[[str], None]
) -> None:
    try:
        for step in move.steps.before:
            _call(machines, step, {})
    except MachineError:
        # A run may have died right after its way back: as long as that is not written down,
        # nothing is copied for the next try, and none is ever ready.
        if _leads_to(door, move.old):
            placed("returned")
            raise
        with _behind_the_door(move):
            raise


def _move(
    machines: Caller, move: Move, placed: Callable[[str], None], taken: dict[str, Any]
) -> None:
    try:
        taken["close"] = machines.call(move.front, "door.close")["seconds"]
        taken["leave"] = machines.call(
            move.old.machine,
            "synapse_move.leave",
            service=move.service,
            ports=list(move.ports),
            **move.leave,
        )
        answers: dict[str, Any] = {}
        for step in move.steps.act:
            answers[step.function] = _call(machines, step, answers)
        handed = {function for step in move.steps.act for function in step.given.values()}
        if shown := {name: row for name, row in answers.items() if name not in handed}:
            taken["steps"] = shown
        taken["arrive"] = _started(machines, move, move.new, **move.arrive)
    except MachineError as error:
        tried = back(machines, move, cause=error).get("tried", [])
        placed("returned")
        where = "everything serves" if move.old == move.new else f"it serves on {move.old.machine}"
        raise Returned(
            f"{move.what} did not move: {error}. Nothing is lost, {where} as before; "
            f"mend this and run the same again{''.join(f'. {words}' for words in tried)}"
        ) from error


def _opened(machines: Caller, move: Move, placed: Callable[[str], None], arrived: bool) -> float:
    with _behind_the_door(move):
        try:
            return float(machines.call(move.front, "door.open", move.new.target)["seconds"])
        except MachineError:
            if not arrived and not _leads_to(machines.call(move.front, "door.status"), move.new):
                # Nobody got through, so there is a way back still.
                placed("moving")
            raise


@contextlib.contextmanager
def _behind_the_door(move: Move, cause: MachineError | None = None) -> Iterator[None]:
    """What fails here leaves people waiting, and says so.

    :param cause: what failed before it.
    """
    try:
        yield
    except MachineError as error:
        raise MachineError(
            f"{f'{cause}; and ' if cause else ''}{error}. The door of {move.front} may be shut "
            "still, clients wait: mend this and run the same again, it goes on"
        ) from error


def _door_moves(move: Move) -> bool:
    """Whether an open door tells by itself which of the two places people write at."""
    return move.old.target != move.new.target


def _leads_to(door: Mapping[str, Any], place: Place) -> bool:
    return bool(door["state"] == "open" and door["target"] == place.target)


def _started(machines: Caller, move: Move, place: Place, **more: Any) -> Any:
    words: dict[str, Any] = {"service": move.service, "url": place.url, "pulls": [], **more}
    # Elsewhere not for after a reboot: a machine that is given up and comes back must not start
    # a second Synapse.
    enable = place.machine == move.old.machine
    return machines.call(place.machine, "synapse_move.arrive", enable=enable, **words)


def _tried(machines: Caller, step: Ask) -> str:
    try:
        said = _call(machines, step, {})
    except MachineError as error:
        return (
            f"{step.machine} was not reached for {step.function}, or could not do it: {error}. "
            f"{step.undone}"
        )
    return f"{step.machine}: {said}" if said else ""


def _call(machines: Caller, step: Ask, answers: Mapping[str, Any]) -> Any:
    given = {key: answers[function] for key, function in step.given.items()}
    return machines.call(
        step.machine, step.function, timeout=STEP_SECONDS, **step.kwargs, **given
    )
