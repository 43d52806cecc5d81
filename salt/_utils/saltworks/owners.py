"""Which process works on a milestone, and whether it still lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import Refused
from .milestone import Owner, Record, running_elsewhere


def this_process() -> Owner:
    """The process that asks, as the owner of what it begins."""
    pid = os.getpid()
    return Owner(_boot_id(), pid, stat_field(pid, 19) or "")


def alive_elsewhere(record: Record) -> dict[str, bool]:
    """For each milestone with an owner, whether that lives and is not who asks.

    Salt may run a step of an orchestration in a child of the orchestration's own process,
    so the parents of this one are who asks as well.
    """
    boot, own = _boot_id(), set(_lineage())
    return {
        name: owner["boot_id"] == boot
        and owner["pid"] not in own
        and stat_field(owner["pid"], 19) == owner["started"]
        for name, row in record.items()
        if (owner := row.get("owner"))
    }


def refuse_others(record: Record, what: str) -> None:
    """Refuse what may not be done while another process works on a milestone.

    :param what: it, as the head of the refusal.
    :raises Refused: one does.
    """
    wrong = running_elsewhere(record, alive_elsewhere(record))
    if wrong:
        raise Refused(what, wrong)


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
