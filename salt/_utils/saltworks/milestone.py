"""The milestone record: what is achieved, what may start, what is armed.

Pure: records go in and come out as plain mappings, times are seconds since the
epoch (UTC) given by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import Problem

#: The milestones in their order; each needs the one before it.
ORDER = ("m1", "m2")

TITLES = {
    "m1": "Synapse upgraded to the latest stable release, behind the front door",
    "m2": "Synapse and nginx on machines of their own",
}

#: How long a destructive step stays armed, in seconds.
CATCH_SECONDS = 60

Record = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Owner:
    """The process that runs a milestone: enough to know whether it still lives."""

    boot_id: str
    pid: int
    started: str

    def as_row(self) -> dict[str, Any]:
        return {"boot_id": self.boot_id, "pid": self.pid, "started": self.started}


def is_achieved(record: Record, name: str) -> bool:
    """Whether a milestone's verdict has been written."""
    return record.get(name, {}).get("state") == "achieved"


def order_problems(record: Record, name: str) -> list[Problem]:
    """Why a milestone may not start yet: each needs the one before it.

    :raises KeyError: for a name that is no milestone.
    """
    if name not in ORDER:
        raise KeyError(f"no milestone is called {name!r}; there are {', '.join(ORDER)}")
    index = ORDER.index(name)
    if index == 0 or is_achieved(record, ORDER[index - 1]):
        return []
    before = ORDER[index - 1]
    return [
        Problem(
            f"milestone {name}",
            f"{before.upper()} is not achieved",
            f"run salt-run state.orchestrate orch.{before} first",
        )
    ]


def begun(record: Record, name: str, owner: Owner, now: float) -> dict[str, Any]:
    """The record's row when a milestone starts, or goes on after its run died.

    :raises KeyError: for a name that is no milestone.
    """
    if name not in ORDER:
        raise KeyError(f"no milestone is called {name!r}; there are {', '.join(ORDER)}")
    row = dict(record.get(name, {}))
    # What an earlier run showed says nothing about what this one does.
    row.pop("verified", None)
    row.update(state="running", owner=owner.as_row())
    row.setdefault("started", now)
    row["runs"] = int(row.get("runs", 0)) + 1
    return row


def claimed(record: Record, name: str, owner: Owner) -> dict[str, Any]:
    """The record's row while a milestone is taken back."""
    return {**record[name], "owner": owner.as_row()}


def verified(record: Record, name: str, verdict: str) -> dict[str, Any]:
    """The record's row once all checks passed; nothing of a milestone that has ended."""
    row = dict(record[name])
    if row["state"] == "running":
        row["verified"] = verdict
    return row


def ended(record: Record, name: str, state: str, now: float, verdict: str) -> dict[str, Any]:
    """The record's row when a run ended: ``achieved`` or ``rolled-back``."""
    row = dict(record.get(name, {}))
    for passing in ("owner", "verified"):
        row.pop(passing, None)
    row.update(state=state, finished=now, verdict=verdict)
    return row


def running_elsewhere(record: Record, alive: Mapping[str, bool]) -> list[Problem]:
    """Milestones that another live process is working on.

    :param alive: for each milestone with an owner, whether that process lives.
    """
    return [
        Problem(
            f"milestone {name}",
            f"is running already (process {record[name]['owner']['pid']})",
            "wait for it, or stop that process and run this again",
        )
        for name in sorted(alive)
        if alive[name]
    ]


def catch_problems(
    record: Record, armed_at: float | None, name: str, now: float
) -> list[Problem]:
    """Why a destructive step may not run: too early, not armed, or no longer.

    :param name: the step, its milestone first, such as ``m1.finalize``.
    :param armed_at: when it was armed, None if never.
    """
    of = name.partition(".")[0]
    if not is_achieved(record, of):
        first = f"run salt-run state.orchestrate orch.{of} to its end first"
        return [Problem(name, f"{of.upper()} is not achieved, its way back is still needed", first)]
    arm = f"salt-run milestone.arm {name}, then run it within {CATCH_SECONDS} s"
    if armed_at is None:
        return [Problem(name, "takes something away for good and is not armed", arm)]
    if now - armed_at > CATCH_SECONDS:
        late = int(now - armed_at)
        return [Problem(name, f"was armed {late} s ago, more than {CATCH_SECONDS} s", arm)]
    return []


def return_problems(record: Record, name: str) -> list[Problem]:
    """Why a milestone may not be taken back: it never began, or people use what it made.

    :param name: the milestone, such as ``m1``.
    """
    if name not in record:
        return [Problem(f"milestone {name}", "has not begun", "there is nothing to take back")]
    if not is_achieved(record, name):
        return []
    what = "is achieved: going back now would lose what people have written there since"
    return [Problem(f"milestone {name}", what, "mend what is wrong, and go on")]


def table(record: Record) -> list[dict[str, str]]:
    """One row a milestone, in order, for the operator's screen."""
    rows = []
    for name in ORDER:
        row = record.get(name, {})
        rows.append(
            {
                "milestone": name.upper(),
                "what": TITLES[name],
                "state": str(row.get("state", "not started")),
                "when": _stamp(row.get("finished") or row.get("started")),
                "verdict": str(row.get("verdict", "")),
            }
        )
    return rows


def _stamp(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
