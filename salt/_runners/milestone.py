"""The milestones' record: ``salt-run milestone.status``."""

from __future__ import annotations

import time
from typing import Any

from saltworks import bank, lock, milestone, parts
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.tree import Tree

_RECORD = "milestones"
_ARMED = "armed"


@refusing
def status() -> list[dict[str, str]]:
    """Which milestones are achieved, when, and with which verdict.

    CLI Example:

    .. code-block:: bash

        salt-run milestone.status
    """
    return milestone.table(bank.read(_store(), _RECORD))


@refusing
def begin(name: str) -> str:
    """Record that a milestone runs; one left behind by a dead run is taken over.

    :param name: the milestone, such as ``m1``.
    :raises saltworks.errors.Refused: out of order, another run is alive, or one has died in the
        window of another part.
    """
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    record = bank.read(house.store, _RECORD)
    wrong = milestone.order_problems(record, name) + lock.problems(house.store)
    cmap = house.map()
    if cmap is not None:
        # The precheck has said it already, but a run may have died since.
        wrong += parts.begin_problems(name, house.placement(cmap), achieved=False)
    if wrong:
        raise Refused(name.capitalize(), wrong)
    lock.take(house, f"{lock.MILESTONE} {name}", lock.MILESTONE_SECONDS)
    row = milestone.begun(record, name, time.time())
    bank.write(house.store, _RECORD, {**record, name: row})
    return f"{name.capitalize()} began"


@refusing
def achieve(name: str) -> str:
    """Record that a milestone was achieved, with the verdict of ``verify.milestone``.

    :param name: the milestone, such as ``m1``.
    :raises saltworks.errors.Refused: the run that is recorded was not verified.
    """
    row = bank.read(_store(), _RECORD).get(name, {})
    if "verified" not in row:
        again = f"run salt-run state.orchestrate orch.{name}"
        raise Refused(name.capitalize(), [Problem(f"milestone {name}", "was not verified", again)])
    return _end(name, "achieved", row["verified"])


@refusing
def roll_back(name: str) -> str:
    """Record that a milestone was rolled back."""
    return _end(name, "rolled-back", "rolled back, the server is as it was before")


@refusing
def finalize(name: str) -> str:
    """Record that what a milestone's way back needed is gone."""
    store = _store()
    record = bank.read(store, _RECORD)
    row = milestone.finalized(record, name, time.time())
    bank.write(store, _RECORD, {**record, name: row})
    return f"{name.capitalize()} is finalized"


@refusing
def check_return(name: str, claim: bool = False) -> str:
    """Refuse to take a milestone back that never began, that runs, or that people use already.

    :param name: the milestone, such as ``m1``.
    :param claim: take the cluster's lock, so that no run begins meanwhile.
    """
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    store = house.store
    record = bank.read(store, _RECORD)
    wrong = milestone.return_problems(record, name)
    wrong += lock.problems(store)
    cmap = house.map()
    if cmap is not None:
        wrong += parts.return_problems(name, cmap, house.placement(cmap))
    if wrong:
        raise Refused(f"{name.capitalize()}'s rollback", wrong)
    if claim:
        lock.take(house, f"{lock.MILESTONE} {name}", lock.MILESTONE_SECONDS)
    return f"{name.capitalize()} may be taken back"


@refusing
def arm(name: str) -> str:
    """Open the catch of a destructive step for a minute.

    :param name: the step, such as ``m1.finalize``.

    CLI Example:

    .. code-block:: bash

        salt-run milestone.arm m1.finalize
    """
    store = _store()
    bank.write(store, _ARMED, {**bank.read(store, _ARMED), name: time.time()})
    return f"{name} is armed for {milestone.CATCH_SECONDS} s"


@refusing
def check_catch(name: str) -> str:
    """Refuse unless a destructive step is armed; it is disarmed by this.

    :raises saltworks.errors.Refused: not armed, too long ago, or a part of M3 is on its way.
    """
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    store = house.store
    armed = bank.read(store, _ARMED)
    at = armed.pop(name, None)
    wrong = milestone.catch_problems(bank.read(store, _RECORD), at, name, time.time())
    bank.write(store, _ARMED, armed)
    cmap = house.map()
    if cmap is not None:
        placement = house.placement(cmap)
        wrong += parts.open_window(placement) + parts.telling_problems(placement.telling)
    if wrong:
        raise Refused(name, wrong)
    return f"{name} was armed"


def _store() -> Any:
    return Tree.of(__opts__).store  # type: ignore[name-defined]


def _end(name: str, state: str, verdict: str) -> str:
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    record = bank.read(house.store, _RECORD)
    row = milestone.ended(record, name, state, time.time(), verdict)
    bank.write(house.store, _RECORD, {**record, name: row})
    lock.release(house)
    return f"{name.capitalize()} is {state}"
