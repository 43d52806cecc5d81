"""Declared, admitted and healthy against what runs: ``salt-run reconcile.plan``."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import salt.runner
from saltworks import (
    admission,
    bank,
    joins,
    lock,
    members,
    membership,
    movement,
    parts,
    passes,
    reconcile,
)
from saltworks.errors import Refused
from saltworks.keys import Keys
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines
from saltworks.tree import Tree

log = logging.getLogger(__name__)

__opts__: dict[str, Any]

#: The orchestrations of actions; what is settled needs none.
ORCHESTRATIONS: Mapping[str, str] = {
    what: f"orch.worker.{what}" for what in ("tell", "lose", "join", "leave")
}

#: Those that a machine of the database's cluster has of its own.
DATABASE: Mapping[str, str] = {
    what: f"orch.database.{what}" for what in ("lose", "join", "leave")
}

#: For how long a milestone waits for machines about which nothing is done, which may be booting,
#: and between two looks, in seconds.
ARRIVE_SECONDS, ARRIVE_EVERY = 120, 1.0


@refusing
def poke() -> str:
    """A pass is made soon, whoever asks how often; this returns at once.

    CLI Example:

    .. code-block:: bash

        salt-run reconcile.poke
    """
    house = Tree.of(__opts__)
    if not members.any_known(house):
        return "nobody was invited, nothing is to be kept"
    started = passes.poke(house.records, passes.starter(__opts__))
    return "a pass begins" if started else "a pass will follow the one that runs"


@refusing
def run(handle: int | None = None) -> str:
    """Make passes until none is wanted, as long as no other process does.

    What has failed is tried again now, not only when its time comes: whoever says this has mended
    something.

    :param handle: of the mutex, when :func:`poke` started this; then nobody says it.

    CLI Example:

    .. code-block:: bash

        salt-run reconcile.run
    """
    house = Tree.of(__opts__)
    # The first: else one that fails slowly would be tried again and again, as passes are wanted.
    patience = itertools.chain([handle is not None], itertools.repeat(True))
    made = passes.make(house.records, lambda: _pass(house, patient=next(patience)), handle)
    return f"{made} passes were made" if made else "another process makes them, and one more now"


@refusing
def plan() -> list[str]:
    """What the next pass would do, in order; nothing is changed.

    CLI Example:

    .. code-block:: bash

        salt-run reconcile.plan
    """
    house = Tree.of(__opts__)
    now = time.time()
    seen = members.gathered(house, Keys(__opts__), lambda: Machines(__opts__), now)
    actions = reconcile.decided(seen, now)
    return [f"{row.what} {row.minion}: {row.why}" for row in actions]


@refusing
def last() -> dict[str, Any]:
    """The last pass: when it was, what it did, what it could not do, and who waits for what.

    CLI Example:

    .. code-block:: bash

        salt-run reconcile.last
    """
    row = bank.read(Tree.of(__opts__).store, members.PASSES)
    return {**row, "began": lock.stamp(row["began"])} if row else {}


@refusing
def coming() -> list[str]:
    """Members that have been let in and are not in service.

    CLI Example:

    .. code-block:: bash

        salt-run reconcile.coming
    """
    return [*_coming(Tree.of(__opts__))]


@refusing
def arrive() -> dict[str, Any]:
    """Have passes made, and wait until every machine that has been let in is in service.

    Reconcile brings them, in its own process: what failed before is forgotten, so that it is tried
    now. It is waited for as long as reconcile is at work, whose steps are bounded each.

    :returns: ``said`` and ``changes``, as a step of an orchestration wants them.
    :raises MachineError: a join failed, a machine went away, somebody else has the cluster, or
        nothing was done about a machine for ``ARRIVE_SECONDS``, in which it might have booted.
    """
    house = Tree.of(__opts__)
    began, before = time.time(), _in_service(house)
    with house.changing(joins.RECORD) as rows:
        for name in _coming(house).keys() & rows.keys():
            rows[name] = joins.anew(rows[name])
    passes.poke(house.records, passes.starter(__opts__))
    known, left, looked = {*_coming(house)}, _coming(house), False
    end = time.monotonic() + ARRIVE_SECONDS
    while time.monotonic() < end:
        time.sleep(ARRIVE_EVERY)
        last, left = left, _coming(house)
        known |= left.keys()
        looked = bank.read(house.store, members.PASSES).get("began", 0.0) >= began
        hold = lock.holder(bank.read(house.store, lock.RECORD), time.time())
        if hold and hold.reason.startswith(lock.MILESTONE):
            raise MachineError(_missing(house, left, f"{hold.reason} has the cluster's lock"))
        if hold or left != last:
            end = time.monotonic() + ARRIVE_SECONDS
        elif looked and all(left.values()):
            break
    if not looked:
        what = f"reconcile made no pass within {ARRIVE_SECONDS} s"
        raise MachineError(f"{what}: see the master's log, and salt-run reconcile.run")
    there = _in_service(house)
    out = bank.read(house.store, admission.OUT)
    if away := {name: left.get(name, "") for name in sorted(known - there) if name not in out}:
        raise MachineError(_missing(house, away))
    came = sorted(there - before)
    said = f"{', '.join(came)} came into service" if came else "nobody is on the way in"
    return {"said": said, "changes": {"joined": came} if came else {}}


def _coming(house: Tree) -> dict[str, str]:
    """Who is waited for: not a standby that was declared before there is a cluster."""
    clustered = bool(bank.read(house.store, "placement").get("clustered"))
    rows = {
        name: row
        for name, row in movement.members_of(house).items()
        if clustered or row.kind != membership.DATABASE
    }
    return joins.coming(rows, bank.read(house.store, joins.RECORD))


def _in_service(house: Tree) -> set[str]:
    rows = movement.members_of(house)
    return {name for name, row in rows.items() if row.state == "ready"} - {*_coming(house)}


def _missing(house: Tree, away: Mapping[str, str], nothing: str = "") -> str:
    """Who has not come into service, and why.

    :param nothing: why nothing was done about one of whom nothing else is known.
    """
    waits = bank.read(house.store, members.PASSES).get("waits", {})
    nothing = nothing or f"nothing was done about it for {ARRIVE_SECONDS} s"
    why = {
        name: ", ".join(text for text in (error, waits.get(name, "")) if text) or nothing
        for name, error in away.items()
    }
    words = "; ".join(f"{name}: {text}" for name, text in why.items()) or nothing
    return (
        f"not in service: {words}. Other processes serve in its place and reconcile tries on: "
        "salt-run worker.list, reconcile.last; once it is mended, salt-run reconcile.run"
    )


def _pass(house: Tree, patient: bool = True) -> None:
    """One pass: see, decide, do one thing, and see again, until nothing is left.

    Nothing is done twice for the same reason: what fails is in the log and in the next pass again.

    :param patient: what has failed before is left alone until its time comes.
    """
    began = time.time()
    done: list[str] = []
    waits: dict[str, str] = {}
    tried: set[reconcile.Action] = set()
    try:
        while True:
            now = time.time()
            seen = members.gathered(house, Keys(__opts__), lambda: Machines(__opts__), now)
            due = now if patient else math.inf
            waits = reconcile.waits(seen, due)
            actions = reconcile.decided(seen, due)
            action = next((row for row in actions if row not in tried), None)
            if action is None:
                if not seen.untold:
                    # Else it was not looked whether there is still something to be done.
                    _unblamed(house, {*waits, *(row.minion for row in actions)})
                break
            tried.add(action)
            reason = f"reconcile: {action.what} of {action.minion}"
            lock.take(house, reason, lock.HOLD_SECONDS)
            try:
                # Only now: it may have been opened until then.
                _no_window(house)
                done.append(_done(house, seen, action))
            finally:
                lock.release(house)
        members.swept(house, began)
    except (Refused, MachineError) as error:
        line = error.line if isinstance(error, Refused) else str(error)
        log.warning("reconcile: %s", line)
        done.append(line)
    with house.changing(members.PASSES) as row:
        row.update(members.counted(row, began, time.time(), done, waits))


def _unblamed(house: Tree, kept: set[str]) -> None:
    with house.changing(joins.RECORD) as rows:
        rows.update(joins.unblamed(rows, kept))


def _no_window(house: Tree) -> None:
    """Behind a door that a milestone's dead run has shut nobody else is told, nor let in.

    :raises Refused: a part's window stands open.
    """
    cmap = house.map()
    if cmap is not None and (wrong := parts.open_window(house.placement(cmap))):
        raise Refused("reconcile", wrong)


def _done(house: Tree, seen: reconcile.Seen, action: reconcile.Action) -> str:
    words = f"{action.what} of {action.minion}, because {action.why}"
    log.warning("reconcile: %s", words)
    if action.what == "settle":
        own = seen.let_in[action.minion]
        try:
            admission.settle(house, Keys(__opts__), action.minion, own)
        except Refused as error:
            log.warning("reconcile: %s", error.line)
            return error.line
        return words
    kind = seen.members[action.minion].kind if action.minion in seen.members else ""
    known = {**ORCHESTRATIONS, **(DATABASE if kind == membership.DATABASE else {})}
    answer = _orchestrated(known[action.what], {"worker": action.minion})
    why = failures(answer)
    if why:
        log.error("reconcile: %s failed: %s", words, "; ".join(why))
    with house.changing(joins.RECORD) as rows:
        row = rows.get(action.minion, {})
        if action.what == "join" and why:
            rows[action.minion] = joins.ended(row, why, time.time())
        elif action.what in ("leave", "lose") and (why or "leaving" in row):
            rows[action.minion] = joins.left(row, action.what, why, time.time())
    return f"{words}: {'; '.join(why) or 'done'}"


def _orchestrated(name: str, pillar: dict[str, Any]) -> Any:
    """An orchestration's answer.

    With a client and a user of its own: ``state.orchestrate`` goes on as the user whom the last
    runner was called by, and that of a runner within an orchestration is nobody, whom the master
    lets do nothing (salt/runners/state.py, ``__user__``; salt/client/mixins.py, ``low``).
    """
    with salt.runner.RunnerClient(dict(__opts__)) as client:
        return client.cmd(
            "state.orchestrate",
            [name],
            pub_data={"user": __opts__["user"]},
            kwarg={"pillar": pillar},
            print_event=False,
        )


def failures(answer: Any) -> list[str]:
    """Why an orchestration failed, one text a step; none when it did not."""
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), dict):
        return [str(answer)]
    if not answer.get("retcode"):
        return []
    found = []
    for rows in answer["data"].values():
        steps = rows.values() if isinstance(rows, dict) else []
        found += [
            f"{row.get('__id__')}: {row.get('comment')}"
            for row in steps
            if row.get("result") is False and "requisite failed" not in str(row.get("comment"))
        ]
    return found or [str(answer["data"])]
