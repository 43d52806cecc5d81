"""A part of M3 moves while Synapse stands still and the front door is held.

One process conducts it, because each second of it is a second that people wait. Each step does
nothing when it is done already, so a run that died is finished, or taken back, by the next.
The same way leads back again, until the part is finalized.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .handover import ANNOUNCE_SECONDS, Caller, Returned, Stranded
from .minions import MachineError
from .parts.model import Ask, Steps

#: After how long without an answer a machine is asked whether it still works on a step: one
#: that has died is to be noticed while people still wait.
STEP_SECONDS = 5


@dataclass(frozen=True)
class Switch:
    """A part's move, with what it takes.

    :param part: its name.
    :param front: the machine whose door is held.
    :param target: the door's target, Synapse, which stays where it is.
    :param synapse: Synapse's machine.
    :param service: Synapse's unit there, without suffix.
    :param ports: ports there whose connections are requests in flight.
    :param url: base URL that Synapse answers by there.
    :param config: Synapse's configuration in use; the upcoming one lies beside it.
    :param steps: what is done meanwhile.
    """

    part: str
    front: str
    target: str
    synapse: str
    service: str
    ports: tuple[int, ...]
    url: str
    config: str
    steps: Steps


def conduct(
    machines: Caller,
    move: Switch,
    placed: Callable[[str], None],
    arrived: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Move a part, or leave everything where it was.

    :param machines: how machines are called.
    :param placed: records how far it has come: ``moving`` before anything is touched,
        ``arrived`` before the door opens, ``returned`` after the way back.
    :param arrived: an earlier run recorded that; what is left is to open the door.
    :param clock: seconds.
    :returns: ``changed``, the seconds of each step and of the whole ``window``; answers of
        the part's own steps are under ``steps``, by function, but for those that were only
        given to a later one.
    :raises Returned: it failed, and everything is where it was.
    :raises Stranded: it failed, and it is not certain that the way back is safe.
    :raises MachineError: nothing was touched yet, or it has arrived and the next run goes on.
    """
    door = machines.call(move.front, "door.status")
    is_open = door["state"] == "open" and door["target"] == move.target
    if arrived and is_open:
        placed("arrived")
        return {"changed": False}
    taken: dict[str, Any] = {"changed": True}
    if not arrived and door["state"] != "closed":
        for step in move.steps.before:
            _call(machines, step, {})
        machines.call(move.front, "door.announce", ANNOUNCE_SECONDS)
    begun = clock()
    if arrived:
        # A run that died on its way elsewhere may have left it there: nobody has written yet
        # but a Synapse behind a shut door.
        machines.call(move.synapse, "synapse_move.stop", move.service)
        for step in move.steps.undo:
            _call(machines, step, {})
        taken["arrive"] = _started(machines, move)
    else:
        placed("moving")
        begun = clock()
        _move(machines, move, placed, taken)
    placed("arrived")
    taken["open"] = machines.call(move.front, "door.open", move.target)["seconds"]
    taken["window"] = round(clock() - begun, 3)
    return taken


def _move(
    machines: Caller, move: Switch, placed: Callable[[str], None], taken: dict[str, Any]
) -> None:
    try:
        taken["close"] = machines.call(move.front, "door.close")["seconds"]
        taken["leave"] = machines.call(
            move.synapse, "synapse_move.leave", service=move.service, ports=list(move.ports)
        )
        answers: dict[str, Any] = {}
        for step in move.steps.act:
            answers[step.function] = _call(machines, step, answers)
        handed = {function for step in move.steps.act for function in step.given.values()}
        taken["steps"] = {name: row for name, row in answers.items() if name not in handed}
        machines.call(move.synapse, "synapse_move.take_up", move.config)
        taken["arrive"] = _started(machines, move)
    except MachineError as error:
        _back(machines, move, error)
        placed("returned")
        raise Returned(
            f"{move.part} did not move: {error}. Nothing is lost, everything serves as before; "
            "mend this and run the milestone again"
        ) from error


def _back(machines: Caller, move: Switch, cause: MachineError) -> None:
    try:
        machines.call(move.synapse, "synapse_move.stop", move.service)
        for step in move.steps.undo:
            _call(machines, step, {})
        machines.call(move.synapse, "synapse_move.put_back", move.config)
    except MachineError as error:
        raise Stranded(
            f"{cause}; and the way back failed: {error}. The door of {move.front} stays shut, "
            f"clients wait: mend that machine and run the milestone again, or its rollback"
        ) from error
    _started(machines, move)
    machines.call(move.front, "door.open", move.target)


def _started(machines: Caller, move: Switch) -> Any:
    pulls: list[Any] = []
    return machines.call(
        move.synapse,
        "synapse_move.arrive",
        service=move.service,
        url=move.url,
        pulls=pulls,
        enable=True,
    )


def _call(machines: Caller, step: Ask, answers: Mapping[str, Any]) -> Any:
    given = {key: answers[function] for key, function in step.given.items()}
    return machines.call(
        step.machine, step.function, timeout=STEP_SECONDS, **step.kwargs, **given
    )
