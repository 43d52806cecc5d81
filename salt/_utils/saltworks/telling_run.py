"""Conducts a telling (:mod:`saltworks.telling`): door, stops, registry, state runs, door.

One process does it, because each second of it is a second that people wait. What is to be done is
written down before anybody waits for it, so that a run that died is finished by the next
(:func:`finish`), which does not depend on whoever has died meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from . import minions, reconcile
from .errors import Refused
from .minions import BOUND_SECONDS, QUEUE, ROLE_SLS, MachineError, bring_modules
from .telling import LATE, TOLD, Telling

log = logging.getLogger(__name__)

#: After how many seconds without an answer a machine is asked whether it is still at it: one that
#: has died meanwhile is to be noticed while people still wait, and so is an answer that was lost
#: with the master's restart. The door itself may take longer.
STEP_SECONDS, DOOR_SECONDS = 5, 60

#: How long machines may take to get the project's modules.
MODULES_SECONDS = 10


#: Machine to services.
Stops = Mapping[str, Sequence[str]]


class Caller(minions.Caller, Protocol):
    """The part of :class:`saltworks.minions.Machines` that is used."""

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any: ...


class House(Protocol):
    """The part of :class:`saltworks.tree.Tree` that is used."""

    def changing(self, key: str) -> AbstractContextManager[dict[str, Any]]: ...


class Untouched(MachineError):
    """It failed before the registry changed: what was stopped runs again, the door is open."""


@dataclass(frozen=True)
class Way:
    """Where a telling goes.

    :param front: the machine with the door.
    :param target: what the door opens to.
    :param main: the main process's machine.
    :param ports: machine to the ports at which nothing may be in flight when it is stopped, or
        restarted by its state run.
    :param announce: seconds for which clients are told before; 0 when there is no time for that.
    """

    front: str
    target: str
    main: str
    ports: Mapping[str, list[int]]
    announce: int = 0


class Ledger:
    """What is written down of a telling.

    :param minion: the member of whom others are told.
    """

    def __init__(self, house: House, minion: str) -> None:
        self._house, self._minion = house, minion

    def begun(self, told: Telling) -> None:
        """From here on a run that dies is finished by the next."""
        with self._house.changing(TOLD) as rows:
            rows[self._minion] = told.as_row()

    def changed(self) -> None:
        """The registry says what it is to say: whoever has a state run starts with that."""
        with self._house.changing(TOLD) as rows:
            for row in rows.values():
                row["changed"] = True

    def late(self, machines: Mapping[str, Sequence[str]], *, failed: bool = False) -> None:
        """Machines are to be told later: when they answer; ever later, where that fails."""
        with self._house.changing(LATE) as rows:
            for name, services in machines.items():
                row = rows.get(name, {})
                failures = int(row.get("failures", 0)) + failed
                rows[name] = {
                    "services": sorted({*row.get("services", ()), *services}),
                    "failures": failures,
                    "not_before": reconcile.next_try(failures, time.time()) if failures else 0.0,
                }

    def heard(self, machines: Sequence[str]) -> None:
        """Machines know how things stand now."""
        with self._house.changing(LATE) as rows:
            for name in machines:
                rows.pop(name, None)

    def ended(self) -> None:
        """Nobody is being told of anything any more."""
        with self._house.changing(TOLD) as rows:
            rows.clear()


def conduct(
    machines: Caller, way: Way, told: Telling, ledger: Ledger, change: Callable[[], Any]
) -> str:
    """Tell of a change, all of it.

    :param change: the registry says it.
    :returns: what was done, in words.
    :raises Untouched: it failed before the change.
    :raises MachineError: it failed; the door may be shut, and :func:`finish` is to follow.
    """
    if way.announce:
        # Else people wait already; who fails for want of them gets them when he is told later.
        _modules(machines, way, told)
    # Nothing is stopped yet, but from here on clients may be told to leave, or the door be shut.
    ledger.begun(Telling())
    stopped: Stops = {}
    doubtful: set[str] = set()
    try:
        if way.announce and machines.call(way.front, "door.status")["state"] != "closed":
            bound = way.announce + DOOR_SECONDS
            machines.call(way.front, "door.announce", way.announce, timeout=bound, bound=bound)
        ledger.begun(told)
        _await_runs(machines, [way.front, *told.stop])
        _door(machines, way, "door.close")
        stopped = told.stop
        left = _stop(machines, way, stopped, doubtful)
        change()
    except (MachineError, Refused) as error:
        words = _undone(machines, way, stopped, doubtful, ledger, error)
        raise Untouched(f"{_line(error)}. {words}") from error
    ledger.changed()
    said = _applied(machines, way, told, ledger, {way.main, *told.stop})
    return "; ".join([*_cut(left), said])


def finish(machines: Caller, way: Way, told: Telling, ledger: Ledger) -> str:
    """Bring a telling to its end that did not come there.

    :param told: what is left of it (:func:`saltworks.telling.left`).
    :returns: what was done, in words.
    :raises MachineError: something could not be stopped, or the main process does not come up.
    """
    left: dict[str, int] = {}
    if told.stop:
        _await_runs(machines, [way.front, *told.stop])
        _door(machines, way, "door.close")
        # A machine may have been started anew meanwhile, with what it was told before; and the
        # door may have been open. Who cannot say that nothing is in flight is stopped all the same.
        _, left = _emptied(machines, way)
        if wrong := _stopped(machines, told.stop):
            raise MachineError(
                f"{_words(wrong)}. The door of {way.front} stays shut, clients wait: it would go "
                "on with what it was told before; end it there, then salt-run reconcile.run"
            )
    ledger.changed()
    _modules(machines, way, told)
    said = _applied(machines, way, told, ledger, {way.main})
    return "; ".join([*_cut(left), said])


def _applied(machines: Caller, way: Way, told: Telling, ledger: Ledger, needed: set[str]) -> str:
    """State runs, the front, the door.

    :param needed: machines without which clients wait on.
    """
    failed: dict[str, str] = {}
    for group in told.apply:
        answers = machines.calls(group, "state.sls", ROLE_SLS, timeout=STEP_SECONDS, queue=QUEUE)
        wrong = _wrong(answers)
        failed.update(wrong)
        if missing := sorted(needed & set(wrong)):
            words = _words({name: wrong[name] for name in missing})
            raise MachineError(
                f"{words}. The door of {way.front} stays shut, clients wait: reconcile goes on "
                "from here, salt-run reconcile.last"
            )
    bounds: dict[str, Any] = {"timeout": STEP_SECONDS, "bound": BOUND_SECONDS}
    machines.call(way.front, "state.sls", "nginx.loaded", **bounds, queue=QUEUE)
    # Written down first: one that was forgotten would go on with what it was told before.
    ledger.late(told.of(failed), failed=True)
    done = _door(machines, way, "door.open", way.target)
    ledger.heard(sorted(told.machines - set(failed)))
    ledger.ended()
    words = f"the door of {way.front} is open, after {done['seconds']} s"
    return "; ".join([*(f"later: {failed[name]}" for name in sorted(failed)), words])


def _undone(
    machines: Caller,
    way: Way,
    stopped: Stops,
    doubtful: Collection[str],
    ledger: Ledger,
    cause: Exception,
) -> str:
    """What was stopped runs again, as it was told before, and the door is open.

    :param doubtful: machines that did not say that they have stopped anything: nobody waits for
        them, but for the main process's.
    """
    failed: dict[str, str] = {}
    first = [way.main] if way.main in stopped else []
    last = sorted(set(doubtful) - {way.main})
    try:
        for error in _start(machines, stopped, first).values():
            raise MachineError(error)
        failed |= _start(machines, stopped, sorted({*stopped} - {*first, *last}))
        _door(machines, way, "door.open", way.target)
    except MachineError as error:
        raise _stranded(way, cause, error) from error
    failed |= _start(machines, stopped, last)
    ledger.late({name: stopped[name] for name in failed})
    ledger.ended()
    words = "Nothing is changed, what was stopped runs as before and the door is open"
    return ". ".join([words, *(f"But {failed[name]}" for name in sorted(failed))])


def _stranded(way: Way, cause: Exception, error: MachineError) -> MachineError:
    return MachineError(
        f"{_line(cause)}; and {error}. The door of {way.front} may be shut, clients wait: "
        "reconcile goes on from here, salt-run reconcile.last"
    )


def _door(machines: Caller, way: Way, function: str, *args: str) -> Any:
    return machines.call(way.front, function, *args, timeout=STEP_SECONDS, bound=DOOR_SECONDS)


def _modules(machines: Caller, way: Way, told: Telling) -> None:
    """The project may be newer than what they have; who gets nothing fails at its own step."""
    names = sorted({way.front, *told.machines})
    bring_modules(machines, names, timeout=STEP_SECONDS, bound=MODULES_SECONDS)


def _await_runs(machines: Caller, names: Sequence[str]) -> None:
    """State runs are over that have begun before it was written down what is being done.

    They know nothing of it: they would open the door, or start what is stopped. A state run waits
    for those before it (``queue``), and whatever comes behind this one knows.
    """
    nothing = {"fun": "test.nop", "name": "saltworks-telling"}
    answers = machines.calls(
        names, "state.single", timeout=STEP_SECONDS, queue=QUEUE, **nothing
    )
    if wrong := _wrong(answers):
        raise MachineError(_words(wrong))


def _stop(machines: Caller, way: Way, stops: Stops, doubtful: set[str]) -> dict[str, int]:
    """What is in flight ends, then services are stopped.

    It may need any of them, so all of it ends before any is stopped.

    :param doubtful: gets the machines that do not say that they have.
    :returns: machine to the requests that had not ended in time, and are cut.
    :raises MachineError: not all machines did.
    """
    wrong, left = _emptied(machines, way)
    # Of the others nobody says that they stop.
    wrong = {name: row for name, row in wrong.items() if name in stops}
    wrong = wrong or _stopped(machines, stops)
    doubtful.update(wrong)
    if wrong:
        raise MachineError(_words(wrong))
    return left


def _emptied(machines: Caller, way: Way) -> tuple[dict[str, str], dict[str, int]]:
    """What went wrong where, and where how many requests have not ended in time."""
    if not way.ports:
        return {}, {}
    rows = {name: list(ports) for name, ports in way.ports.items()}
    answers = machines.calls(
        sorted(rows), "synapse_worker.emptied_here", rows, timeout=STEP_SECONDS
    )
    wrong = _wrong(answers)
    left = {name: int(row["left"]) for name, row in answers.items() if name not in wrong}
    return wrong, {name: count for name, count in left.items() if count}


def _cut(left: Mapping[str, int]) -> list[str]:
    words = [f"{left[name]} requests were cut on {name}" for name in sorted(left)]
    for line in words:
        log.warning("telling: %s", line)
    return words


def _stopped(machines: Caller, stops: Stops) -> dict[str, str]:
    rows = {name: list(services) for name, services in stops.items()}
    return _all(machines, "synapse_worker.stop_here", rows)


def _start(machines: Caller, stopped: Stops, names: Collection[str]) -> dict[str, str]:
    rows = {name: list(stopped[name]) for name in names}
    return _all(machines, "synapse_worker.start_here", rows)


def _all(machines: Caller, function: str, rows: Mapping[str, Any]) -> dict[str, str]:
    """Call a function on machines at once; what went wrong, by machine.

    :param rows: what each is to do, which it finds by its own id.
    """
    if not rows:
        return {}
    answers = machines.calls(sorted(rows), function, rows, timeout=STEP_SECONDS)
    return _wrong(answers)


def _wrong(answers: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(row) for name, row in answers.items() if isinstance(row, MachineError)}


def _words(wrong: Mapping[str, str]) -> str:
    return "; ".join(wrong[name] for name in sorted(wrong))


def _line(error: Exception) -> str:
    return error.line if isinstance(error, Refused) else str(error)
