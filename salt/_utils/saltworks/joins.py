"""The record of joins: how far each machine has come, how long each phase took, what failed.

Pure. A phase is stamped when it is over; what a run did before it died stays stamped, and is
done again without harm. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from . import reconcile
from .registry import Member

#: Name of the record in the bank: minion to its row.
RECORD = "joins"

#: The phases in their order; a machine that takes no requests has not the last two.
PHASES = (
    "admitted", "begun", "synced", "highstate", "healthy", "caught-up", "registered", "routed",
    "served",
)  # fmt: skip

Row = Mapping[str, Any]


def begun(row: Row, member: Member, admitted: float, now: float) -> dict[str, Any]:
    """The row when a join begins, or begins again.

    What failed before still counts, in earlier generations as well: until a join comes to its end,
    or an operator lets the machine in anew.

    :param admitted: when the machine came into the registry.
    """
    if row.get("generation") != member.generation:
        row = {**row, "error": ""}
    stamps = {"admitted": admitted, "begun": now}
    return {**row, "generation": member.generation, "stamps": stamps, "finished": 0.0}


def stamped(row: Row, phase: str, now: float) -> dict[str, Any]:
    """The row once a phase is over.

    :raises KeyError: for a name that is no phase.
    """
    if phase not in PHASES:
        raise KeyError(f"no phase is called {phase!r}; there are {', '.join(PHASES)}")
    return {**row, "stamps": {**row.get("stamps", {}), phase: now}}


def ended(row: Row, why: list[str], now: float) -> dict[str, Any]:
    """The row once a join's orchestration has ended.

    :param why: what failed, nothing if it did not.
    """
    if not why:
        return {**row, "finished": now, "failures": 0, "error": "", "not_before": 0.0}
    failures = int(row.get("failures", 0)) + 1
    retry = reconcile.next_try(failures, now)
    return {**row, "failures": failures, "error": "; ".join(why)[:2000], "not_before": retry}


def left(row: Row, what: str, why: list[str], now: float) -> dict[str, Any]:
    """The row once the orchestration of a leave or a loss has ended.

    :param what: ``leave`` or ``lose``.
    :param why: what failed, nothing if it did not.
    """
    if not why:
        return {name: value for name, value in row.items() if name != "leaving"}
    before = row.get("leaving", {})
    failures = 1 + (int(before["failures"]) if before.get("what") == what else 0)
    retry = reconcile.next_loss if what == "lose" else reconcile.next_try
    failed = {
        "what": what,
        "failures": failures,
        "error": f"{what}: {'; '.join(why)}"[:2000],
        "not_before": retry(failures, now),
    }
    return {**row, "leaving": failed}


def unblamed(rows: Mapping[str, Row], kept: Collection[str]) -> dict[str, Any]:
    """The record without the failed leaves and losses of those of whom there is none any more.

    :param kept: members with which something is still to be done.
    """
    return {name: row if name in kept else left(row, "", [], 0.0) for name, row in rows.items()}


def anew(row: Row) -> dict[str, Any]:
    """The row once an operator wants the machine in again: what failed before is forgotten."""
    kept = {name: value for name, value in row.items() if name != "leaving"}
    return {**kept, "failures": 0, "error": "", "not_before": 0.0}


def finished(row: Row, member: Member) -> bool:
    """Whether a member's join has come to its end; one that is gone has none."""
    return (
        member.state != "gone"
        and row.get("generation") == member.generation
        and bool(row.get("finished"))
    )


def coming(members: Mapping[str, Member], rows: Mapping[str, Row]) -> dict[str, str]:
    """Members that have been let in and are not in service, each to why its last join failed.

    :param rows: the record of joins.
    :returns: an empty text for one that has not been tried, or not failed.
    """
    return {
        name: str(rows.get(name, {}).get("error", ""))
        for name, member in sorted(members.items())
        if member.state in ("joining", "ready") and not finished(rows.get(name, {}), member)
    }


def report(row: Row) -> dict[str, Any]:
    """The phases in seconds, and the whole."""
    stamps = row.get("stamps", {})
    known = [(phase, float(stamps[phase])) for phase in PHASES if phase in stamps]
    phases = {name: round(end - start, 3) for (_, start), (name, end) in pairwise(known)}
    return {"phases": phases, "total_seconds": round(sum(phases.values()), 3)}
