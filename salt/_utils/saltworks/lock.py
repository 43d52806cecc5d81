"""The cluster's lock: one milestone, or one orchestration of reconcile, at a time.

A record of who holds it, why, since when and until when at most. Nobody has to free it by
hand: it ends with its owner's process, and at the latest when it expires. Who lost it
because it expired or was broken learns that at its next step (:func:`refuse_others`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from . import bank, owners
from .errors import Problem, Refused
from .owners import Owner

#: Name of the record in the bank.
RECORD = "lock"

#: What a milestone's reason begins with; any other is reconcile's.
MILESTONE = "milestone"

#: How long a milestone may hold it, in seconds. Copying a big media store takes days.
MILESTONE_SECONDS = 7 * 86400

#: How long one orchestration of reconcile may. All its waits are bounded far below.
HOLD_SECONDS = 3600


@dataclass(frozen=True)
class Hold:
    """Somebody has the lock.

    :param owner: the process.
    :param reason: what it does, such as ``milestone m2``.
    :param since: when it began, seconds since the epoch.
    :param expires: when it ends in any case.
    """

    owner: Owner
    reason: str
    since: float
    expires: float

    def as_row(self) -> dict[str, Any]:
        row = {"reason": self.reason, "since": self.since, "expires": self.expires}
        return {"owner": self.owner.as_row(), **row}


class House(Protocol):
    """The part of :class:`saltworks.tree.Tree` that is used."""

    @property
    def store(self) -> bank.Store: ...

    def changing(self, key: str) -> AbstractContextManager[dict[str, Any]]: ...


def holder(row: Mapping[str, Any], now: float) -> Hold | None:
    """Who has the lock by its record, None when it is free.

    :param now: seconds since the epoch.
    """
    if not row:
        return None
    hold = Hold(Owner(**row["owner"]), row["reason"], row["since"], row["expires"])
    return hold if now < hold.expires and owners.lives(hold.owner) else None


def problems(store: bank.Store) -> list[Problem]:
    """Why it cannot be had: somebody else has it."""
    hold = holder(bank.read(store, RECORD), time.time())
    if hold is None or owners.is_own(hold.owner):
        return []
    what = f"is running already (process {hold.owner.pid})"
    return [Problem(hold.reason, what, "wait for it, or stop that process and run this again")]


def refuse_others(store: bank.Store, what: str) -> None:
    """Refuse what may not be done while somebody else has the lock.

    :param what: it, as the head of the refusal.
    :raises Refused: somebody has it.
    """
    if wrong := problems(store):
        raise Refused(what, wrong)


def demand(store: bank.Store, what: str) -> None:
    """Refuse what may be done only by who has the lock.

    :param what: it, as the head of the refusal.
    :raises Refused: this process has it not: it expired, was broken, or somebody else has it.
    """
    refuse_others(store, what)
    if holder(bank.read(store, RECORD), time.time()) is None:
        do = "run the whole again, which takes it; salt-run lock.show"
        raise Refused(what, [Problem("the cluster's lock", "is not held any more", do)])


def take(house: House, reason: str, seconds: float) -> None:
    """Have the lock from here on, until :func:`release`, or this process ends.

    :param reason: what for.
    :param seconds: after which it is free for others in any case.
    :raises Refused: somebody else has it.
    """
    with house.changing(RECORD) as row:
        refuse_others(house.store, reason)
        now = time.time()
        row.update(Hold(owners.this_process(), reason, now, now + seconds).as_row())


def release(house: House) -> None:
    """Let the lock go, if it is this process's."""
    with house.changing(RECORD) as row:
        if row and owners.is_own(Owner(**row["owner"])):
            row.clear()


def table(row: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The lock for the operator's screen."""
    hold = holder(row, now)
    if hold is None:
        return {"held": False}
    return {
        "held": True,
        "reason": hold.reason,
        "process": hold.owner.pid,
        "since": stamp(hold.since),
        "expires": stamp(hold.expires),
    }


def stamp(seconds: float) -> str:
    """A time for the operator's screen."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
