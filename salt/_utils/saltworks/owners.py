"""Which process holds the cluster's lock, and whether it still lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process: enough to know whether it still lives."""

    boot_id: str
    pid: int
    started: str

    def as_row(self) -> dict[str, Any]:
        return {"boot_id": self.boot_id, "pid": self.pid, "started": self.started}


def this_process() -> Owner:
    """The process that asks, as the owner of what it begins."""
    pid = os.getpid()
    return Owner(_boot_id(), pid, stat_field(pid, 19) or "")


def lives(owner: Owner) -> bool:
    """Whether a process still runs; a number that was given anew is another process.

    One that has ended and that its parent has not looked at does not.
    """
    return (
        owner.boot_id == _boot_id()
        and stat_field(owner.pid, 19) == owner.started
        and stat_field(owner.pid, 0) not in ("Z", "X")
    )


def is_own(owner: Owner) -> bool:
    """Whether an owner is who asks.

    Salt may run a step of an orchestration in a child of the orchestration's own process,
    so the parents of this one are who asks as well.
    """
    return lives(owner) and owner.pid in _lineage()


def _lineage() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        pid = int(stat_field(pid, 1) or 0)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def stat_field(pid: int, number: int) -> str | None:
    """A field of proc(5)'s stat, counted from 0 after the name; None if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[number]
