"""Whether it is this machine's turn to take a backup, and of which type. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saltworks_backup_facts import leads_to_the_end

DAY = 86400


@dataclass(frozen=True)
class Turn:
    """What is to be done.

    :param type: ``full`` or ``diff``; empty: nothing.
    :param why: in words.
    """

    type: str
    why: str


def due_since(now: float, hour: int) -> float:
    """When the last nightly backup was due, seconds since the epoch.

    :param hour: of the day, UTC.
    """
    today = now - now % DAY + hour * 3600
    return today if today <= now else today - DAY


def turn(
    *,
    standby: bool,
    backups: Sequence[Mapping[str, Any]],
    stretches: Sequence[Mapping[str, Any]],
    now: float,
    hour: int,
    full_days: int,
) -> Turn:
    """Asked every hour: a night that failed, or fell to a primary that died, is made up for.

    :param standby: whether this machine's server is one.
    :param backups: of the repository, see :func:`saltworks_backup_facts.backups`.
    :param stretches: of its WAL, see :func:`saltworks_backup_facts.stretches`.
    :param now: seconds since the epoch.
    :param hour: from when on the nightly backup may be taken, of the day, UTC.
    :param full_days: days from one full backup to the next.
    """
    if standby:
        return Turn("", "a standby: the primary takes the backups")
    due = due_since(now, hour)
    fulls = [row for row in backups if row["type"] == "full"]
    if not fulls:
        return Turn("full", "there is none yet")
    newest = max(backups, key=lambda row: row["stop"])
    if stretches and not leads_to_the_end(newest, list(stretches)):
        return Turn("diff", f"WAL is missing since {newest['label']}: no time after it is covered")
    if newest["start"] >= due:
        return Turn("", f"{newest['label']} is of this night")
    if max(row["start"] for row in fulls) < due - (full_days - 1) * DAY:
        return Turn("full", f"the newest full one is older than {full_days} days")
    return Turn("diff", f"{newest['label']} is of an earlier night")
