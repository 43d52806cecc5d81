"""The milestone record: what is achieved, what may start, what is armed.

Pure: records go in and come out as plain mappings, times are seconds since the
epoch (UTC) given by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import Problem
from .lock import stamp
from .parts import PARTS, asking
from .parts.database import cluster

#: The milestones in the order of the table, each with what must be achieved before it.
#: The parts of M3 may go in any order.
AFTER: Mapping[str, tuple[str, ...]] = {
    "m1": (),
    "m2": ("m1",),
    **{part.MILESTONE: part.AFTER for part in PARTS.values()},
    cluster.MILESTONE: cluster.AFTER,
}

TITLES = {
    "m1": "Synapse upgraded to the latest stable release, behind the front door",
    "m2": "Synapse and nginx on machines of their own",
    "m3": "database, media and auth on machines of their own",
    "m3.database": "the database on a machine of its own",
    "m3.media": "the media store on a machine of its own",
    "m3.auth": "the password auth backend on a machine of its own",
    "m4.workers": "Redis on a machine of its own, and Synapse ready for workers",
    "m4.database": "the database as a cluster of a primary and standbys",
}

#: How long a destructive step stays armed, in seconds.
CATCH_SECONDS = 60

Record = Mapping[str, Mapping[str, Any]]


def parts_of(name: str) -> list[str]:
    """The milestones that a milestone such as ``m3`` is made of, none for others."""
    return [part for part in AFTER if part.startswith(f"{name}.")]


def is_achieved(record: Record, name: str) -> bool:
    """Whether a milestone's verdict has been written; of one with parts, every part's."""
    rows = parts_of(name) or [name]
    return all(record.get(row, {}).get("state") == "achieved" for row in rows)


def order_problems(record: Record, name: str) -> list[Problem]:
    """Why a milestone may not start yet: each needs the one before it.

    :raises KeyError: for a name that is no milestone.
    """
    return [
        Problem(
            f"milestone {name}",
            f"{before.capitalize()} is not achieved",
            f"run salt-run state.orchestrate orch.{before} first",
        )
        for before in after(name)
        if not is_achieved(record, before)
    ]


def after(name: str) -> tuple[str, ...]:
    """What must be achieved before a milestone.

    :raises KeyError: for a name that is no milestone.
    """
    if name not in AFTER:
        raise KeyError(f"no milestone is called {name!r}; there are {', '.join(AFTER)}")
    return AFTER[name]


def begun(record: Record, name: str, now: float) -> dict[str, Any]:
    """The record's row when a milestone starts, or goes on after its run died.

    :raises KeyError: for a name that is no milestone.
    """
    after(name)
    row = dict(record.get(name, {}))
    # What an earlier run showed says nothing about what this one does.
    row.pop("verified", None)
    row["state"] = "running"
    row.setdefault("started", now)
    row["runs"] = int(row.get("runs", 0)) + 1
    return row


def verified(record: Record, name: str, verdict: str) -> dict[str, Any]:
    """The record's row once all checks passed; nothing of a milestone that has ended."""
    row = dict(record[name])
    if row["state"] == "running":
        row["verified"] = verdict
    return row


def ended(record: Record, name: str, state: str, now: float, verdict: str) -> dict[str, Any]:
    """The record's row when a run ended: ``achieved`` or ``rolled-back``."""
    row = dict(record.get(name, {}))
    row.pop("verified", None)
    row.update(state=state, finished=now, verdict=verdict)
    return row


def finalized(record: Record, name: str, now: float) -> dict[str, Any]:
    """The record's row once what the way back needed is gone."""
    return {**record[name], "finalized": now}


def catch_problems(
    record: Record, armed_at: float | None, name: str, now: float
) -> list[Problem]:
    """Why a destructive step may not run: too early, not armed, or no longer.

    :param name: the step, its milestone first, such as ``m1.finalize``.
    :param armed_at: when it was armed, None if never.
    """
    of = name.rpartition(".")[0]
    if not is_achieved(record, of):
        first = f"run salt-run state.orchestrate orch.{of} to its end first"
        what = f"{of.capitalize()} is not achieved, its way back is still needed"
        return [Problem(name, what, first)]
    arm = f"salt-run milestone.arm {name}, then run it within {CATCH_SECONDS} s"
    if armed_at is None:
        return [Problem(name, "takes something away for good and is not armed", arm)]
    if now - armed_at > CATCH_SECONDS:
        late = int(now - armed_at)
        return [Problem(name, f"was armed {late} s ago, more than {CATCH_SECONDS} s", arm)]
    return []


def return_problems(record: Record, name: str) -> list[Problem]:
    """Why a milestone may not be taken back: it never began, or people use what it made.

    A part keeps the place that it came from in step until it is finalized, and a cluster's last
    machine is that of before, so these go back without loss until then.

    :param name: the milestone, such as ``m1``.
    """
    if name not in record:
        return [Problem(f"milestone {name}", "has not begun", "there is nothing to take back")]
    if not is_achieved(record, name):
        return []
    if asking(name):
        if "finalized" not in record[name]:
            return []
        gone = "is finalized: where it came from is retired for good"
        return [Problem(f"milestone {name}", gone, "mend what is wrong, and go on")]
    what = "is achieved: going back now would lose what people have written there since"
    return [Problem(f"milestone {name}", what, "mend what is wrong, and go on")]


def table(record: Record) -> list[dict[str, str]]:
    """One row a milestone, in order, for the operator's screen."""
    rows = []
    for name in ("m1", "m2", "m3", "m4.workers", "m4.database"):
        rows.append(_whole(record, name) if parts_of(name) else _row(record, name))
        rows += [_row(record, part) for part in parts_of(name)]
    return rows


def _row(record: Record, name: str) -> dict[str, str]:
    row = record.get(name, {})
    return {
        "milestone": name.capitalize(),
        "what": TITLES[name],
        "state": str(row.get("state", "not started")),
        "when": _stamp(row.get("finished") or row.get("started")),
        "verdict": str(row.get("verdict", "")),
    }


def _whole(record: Record, name: str) -> dict[str, str]:
    parts = parts_of(name)
    done = [part for part in parts if is_achieved(record, part)]
    begun_parts = [part for part in parts if part in record]
    state = "achieved" if done == parts else "running" if begun_parts else "not started"
    last = max((float(record[part].get("finished") or 0) for part in done), default=0.0)
    return {
        "milestone": name.capitalize(),
        "what": TITLES[name],
        "state": state,
        "when": _stamp(last or None),
        "verdict": f"{len(done)} of {len(parts)} parts achieved" if begun_parts else "",
    }


def _stamp(seconds: float | None) -> str:
    return "" if seconds is None else stamp(seconds)
