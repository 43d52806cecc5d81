"""What reconcile does next: declared, admitted and healthy, held against what is.

Pure. A pass gathers what is seen, asks :func:`decided` for the actions in their order, and
does one after the other; the next pass sees anew. So an action that failed, or a run that
died, is not remembered but decided again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .lock import stamp
from .membership import Declared
from .registry import Member, Registry

#: What can be done about a machine, in the order in which it is done: first what clients may wait
#: for at a shut door, then what users feel, what brings more machines, and what takes some away.
WHAT = ("tell", "lose", "settle", "join", "leave")

What = Literal["tell", "lose", "settle", "join", "leave"]

_JOINS = {
    "joining": "it was admitted",
    "ready": "its join did not come to its end",
    "gone": "it is back",
}

#: What failed is tried again after so many seconds, each time twice as many, and at most.
RETRY_SECONDS, MOST_RETRY_SECONDS = 60.0, 1800.0
#: The same of a loss, which is tried again at once for the first time: what a dead writer wrote is
#: refused until it succeeds, but each try may keep everybody waiting behind the door.
MOST_LOSS_SECONDS = 120.0


@dataclass(frozen=True)
class Seen:
    """What a pass looks at.

    :param members: the registry.
    :param declared: minion id to what the map says of it; without those that it does not name.
    :param keys: minion id to the fingerprint of its accepted key.
    :param let_in: who may be a member: by an invite that was used, or because an operator
        accepted the key of a machine that the map names; minion id to the key's fingerprint.
    :param out: who an operator wants out.
    :param healthy: of members that are ready, whether their processes answer; without those
        of which nobody could say.
    :param answering: minions that answer, of those of whom it matters.
    :param not_before: when a join that failed is tried again, seconds since the epoch.
    :param not_left_before: the same of a leave.
    :param not_lost_before: the same of a loss.
    :param unfinished: members that are ready, whose join did not come to its end.
    :param untold: members of whom others were being told when that was cut.
    :param late: machines that could not be told of something, and when that is tried at the
        earliest.
    :param blind: the front, when it cannot say of anybody whether he is healthy.
    :param barred: members that cannot join as things stand, to why.
    """

    members: Registry
    declared: Mapping[str, Declared] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    let_in: Mapping[str, str] = field(default_factory=dict)
    out: Collection[str] = ()
    healthy: Mapping[str, bool] = field(default_factory=dict)
    answering: Collection[str] = ()
    not_before: Mapping[str, float] = field(default_factory=dict)
    not_left_before: Mapping[str, float] = field(default_factory=dict)
    not_lost_before: Mapping[str, float] = field(default_factory=dict)
    unfinished: Collection[str] = ()
    untold: Collection[str] = ()
    late: Mapping[str, float] = field(default_factory=dict)
    blind: str = ""
    barred: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Action:
    """One thing to do.

    :param what: ``tell``: a telling that did not come to its end does, or a machine hears of it
        that could not be told; ``settle``: an invite was used, the key and the registry follow;
        ``join``: the machine is brought into service; ``leave``: it is taken out in peace;
        ``lose``: it is gone already, the others are told.
    :param minion: the machine.
    :param why: for the log and the operator.
    """

    what: What
    minion: str
    why: str


def decided(seen: Seen, now: float) -> list[Action]:
    """The actions, in order; one is done, and then it is looked again.

    :param now: seconds since the epoch.
    """
    if seen.untold:
        # Clients may wait at a shut door, and who is stopped for this must not be taken for dead.
        return [Action("tell", min(seen.untold), "not everybody was told of it")]
    found = [
        Action("tell", machine, "it could not be told of a change, and answers now")
        for machine, earliest in seen.late.items()
        if machine in seen.answering and now >= earliest
    ]
    found += [
        Action("settle", minion, "its key was let in")
        for minion, key in seen.let_in.items()
        if _unsettled(seen, minion, key)
    ]
    for member in seen.members.values():
        step = _followed(seen, member, now)
        found += [step] if isinstance(step, Action) else []
    return sorted(found, key=lambda row: _urgency(seen, row))


def waits(seen: Seen, now: float) -> dict[str, str]:
    """Of machines with which something is to be done that is not, what it waits for, in words.

    :param now: seconds since the epoch.
    """
    found = {
        machine: "could not be told of a change: its salt-minion does not answer"
        if machine not in seen.answering
        else f"could not be told of a change: tried again after {stamp(earliest)}"
        for machine, earliest in seen.late.items()
        if machine not in seen.answering or now < earliest
    }
    if seen.blind:
        found[seen.blind] = (
            "cannot say who is healthy, so nobody is noticed who dies: is its salt-minion up, and "
            f"does it reach the other machines? salt {seen.blind} test.ping"
        )
    for minion in seen.declared:
        if minion not in seen.members and minion not in seen.let_in and minion not in seen.out:
            found[minion] = "its key is not accepted: invite it, or accept its key"
    for member in seen.members.values():
        step = _followed(seen, member, now)
        if isinstance(step, str) and step:
            found[member.minion] = step
    return {name: found[name] for name in sorted(found)}


def verdicts(
    answers: Mapping[str, Mapping[str, bool]], dutiful: Collection[str], main: bool
) -> dict[str, bool]:
    """What to believe of the health that the front saw: machine to whether it is well.

    A machine is well when one of its processes answers, and all of them that write a stream or
    have a duty. When nobody answers, the main process neither, then it is the front's network that
    is broken and not all the machines at once: nothing is said of any.

    :param answers: machine to its processes, each to whether it answers.
    :param dutiful: the processes that write a stream or have a duty.
    :param main: whether the main process answers.
    """
    if not main and not any(well for rows in answers.values() for well in rows.values()):
        return {}
    return {
        machine: any(rows.values()) and all(rows[name] for name in rows if name in dutiful)
        for machine, rows in answers.items()
    }


def next_try(failures: int, now: float) -> float:
    """When something is tried again that failed so many times, seconds since the epoch."""
    wait: float = RETRY_SECONDS * 2 ** max(failures - 1, 0)
    return now + min(wait, MOST_RETRY_SECONDS)


def next_loss(failures: int, now: float) -> float:
    """When a loss is tried again that failed so many times, seconds since the epoch."""
    if failures == 1:
        return now
    return min(next_try(failures - 1, now), now + MOST_LOSS_SECONDS)


def _unsettled(seen: Seen, minion: str, key: str) -> bool:
    member = seen.members.get(minion)
    if minion not in seen.declared or minion in seen.out:
        return False
    return member is None or (member.state == "gone" and member.key != key)


def _followed(seen: Seen, member: Member, now: float) -> Action | str:
    """What is to be done with a member, or what that waits for; empty when all is well."""
    minion = member.minion
    if member.state == "ready" and not seen.healthy.get(minion, True):
        return _lost(seen, minion, "its processes do not answer", now)
    if why := _to_go(seen, member):
        if member.state == "gone":
            return ""
        if member.state != "ready" and minion not in seen.answering:
            return _lost(seen, minion, f"{why}, and it does not answer", now)
        if now < (earliest := seen.not_left_before.get(minion, 0.0)):
            return f"its leave failed, tried again after {stamp(earliest)}"
        return Action("leave", minion, why)
    if member.state == "ready" and minion not in seen.unfinished:
        return ""
    if barred := seen.barred.get(minion):
        return barred
    if seen.keys.get(minion) != member.key:
        return "the key that was admitted is not the accepted one: invite it anew"
    if minion not in seen.answering:
        return "its salt-minion does not answer"
    if now < (earliest := seen.not_before.get(minion, 0.0)):
        return f"its join failed, tried again after {stamp(earliest)}"
    return Action("join", minion, _JOINS[member.state])


def _lost(seen: Seen, minion: str, why: str, now: float) -> Action | str:
    if now < (earliest := seen.not_lost_before.get(minion, 0.0)):
        return f"{why}; to go on without it failed, tried again after {stamp(earliest)}"
    return Action("lose", minion, why)


def _to_go(seen: Seen, member: Member) -> str:
    """Why a member is to leave; empty when it is not."""
    declared = seen.declared.get(member.minion)
    if declared is None:
        return "the cluster map says that it is no worker and no database"
    # One that is gone comes as what it is declared now.
    if member.state != "gone" and declared.kind != member.kind:
        return f"the cluster map says that it is of the kind {declared.kind}"
    if member.state != "gone" and declared.processes != member.processes:
        return f"the cluster map gives it {declared.processes} processes, not {member.processes}"
    if member.state != "gone" and declared.reads != member.reads:
        return f"it is to read from {'standbys too' if declared.reads else 'the primary alone'}"
    if member.minion in seen.out:
        return "an operator wants it out"
    return "it was on its way out" if member.state == "draining" else ""


def _urgency(seen: Seen, action: Action) -> tuple[int, float, str]:
    # Who failed before keeps nobody waiting who has not.
    tried = seen.not_before.get(action.minion, 0.0) if action.what == "join" else 0.0
    return WHAT.index(action.what), tried, action.minion
