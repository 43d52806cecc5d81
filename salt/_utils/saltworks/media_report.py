"""The media's store and its caches for the operator's screen: what there is, and what is wrong.

Pure functions over what machines report (``media_store.report``, ``media_store.usage``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .backup_report import size
from .errors import Problem
from .lock import stamp

Row = Mapping[str, Any]

RUNBOOK = "docs/m3-media.md"

#: A cache is pruned every hour, which may take six (the unit's TimeoutStartSec); after so many
#: seconds without it something is wrong.
STALE_SECONDS = 8 * 3600

#: What is well with the service of the timer: it has ended so, or is at work.
WELL = ("success", "running")


def table(store: str, rows: Mapping[str, Row], usage: Row, prunes: bool, now: float) -> Row:
    """All of it.

    :param store: the store's machine.
    :param rows: each machine with a cache to its ``media_store.report``, or ``{"error": text}``.
    :param usage: a machine's ``media_store.usage`` with ``asked``, its id; or an ``error``.
    :param prunes: whether caches are to be pruned by themselves.
    :param now: seconds since the epoch.
    """
    counted = {key: usage[key] for key in ("objects", "bytes", "whole") if key in usage}
    asked = {key: usage[key] for key in ("asked", "requests", "seconds") if key in usage}
    return {
        "store": {"machine": store, **counted, **asked},
        "caches": {name: _shown(row) for name, row in rows.items()},
        "pruning": prunes,
        "problems": [str(row) for row in problems(store, rows, usage, prunes, now)],
    }


def problems(
    store: str, rows: Mapping[str, Row], usage: Row, prunes: bool, now: float
) -> list[Problem]:
    """What an operator has to look at; see :func:`table`."""
    found = [row for name in rows for row in _of_cache(name, rows[name], prunes, now)]
    if "error" in usage:
        step = f"salt {store} state.apply; see 'When the storage machine is away' in {RUNBOOK}"
        found.append(Problem(store, str(usage["error"]), step))
    return sorted(set(found))


def _of_cache(name: str, row: Row, prunes: bool, now: float) -> Iterator[Problem]:
    if "error" in row:
        yield Problem(name, str(row["error"]), f"salt {name} test.ping")
        return
    last, log = row["last"] or {}, f"journalctl -u saltworks-media-cache on {name}"
    if prunes and row["timer"] != "active":
        what = f"saltworks-media-cache.timer is {row['timer']}: nothing bounds the cache"
        yield Problem(name, what, f"salt {name} state.apply")
    elif prunes and last and now - last["at"] > STALE_SECONDS and row["service"] != "running":
        yield Problem(name, f"was pruned last at {stamp(last['at'])}", log)
    if last.get("error"):
        yield Problem(name, f"pruning: {last['error']}", f"see 'The cache' in {RUNBOOK}")
    elif row["service"] not in WELL:
        yield Problem(name, f"the last pruning did not end: {row['service']}", log)
    bound = row["cache"]["keep_bytes"]
    if last and not last["error"] and last["left_bytes"] > bound:
        hours = row["cache"]["idle_seconds"] / 3600
        stayed = f"{size(last['left_bytes'])} stayed of at most {size(bound)}"
        what = f"{stayed}: all of it was used within {hours:g} h, or came to the store only then"
        yield Problem(name, what, "if it stays so: a larger media.cache_bytes in the map")
    if row["bytes"] + row["free"] < bound:
        what = (
            f"the cache may take {size(bound)}, and the disk has room for "
            f"{size(row['bytes'] + row['free'])}"
        )
        yield Problem(name, what, "a larger disk, or a smaller media.cache_bytes in the map")


def _shown(row: Row) -> dict[str, Any]:
    if "error" in row:
        return {"error": row["error"]}
    last = row["last"]
    return {
        "files": row["files"],
        "bytes": row["bytes"],
        "keep_bytes": row["cache"]["keep_bytes"],
        "keep_days": row["cache"]["keep_seconds"] / 86400,
        "unverified": row["unverified"],
        "unverified_bytes": row["unverified_bytes"],
        "timer": row["timer"],
        "last_prune": {
            "at": stamp(last["at"]),
            "files": last["pruned"],
            "bytes": last["bytes"],
            "error": last["error"],
        }
        if last
        else {},
    }
