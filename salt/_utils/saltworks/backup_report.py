"""Backups of the database for the operator's screen: what there is, and what is wrong with it.

Pure functions over what a database machine reports (``pgbackrest.report``) and the verdicts that
runners wrote down; see :mod:`saltworks.backups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .backups import Row, counts, covered_until, newest, spans
from .errors import Problem
from .lock import stamp

#: After so many seconds without a new backup, or a verified one, something is wrong.
STALE_SECONDS, UNVERIFIED_SECONDS = 26 * 3600, 8 * 86400

#: So many segments that wait to be archived are more than a busy minute's.
BACKLOG = 64

#: PostgreSQL's default, which Debian does not change.
SEGMENT_BYTES = 16 << 20


def behind(server: Row, stretches: Sequence[Row]) -> int | None:
    """Bytes of WAL that the store does not have yet; None when it has none of this timeline."""
    last = [row["last"] for row in stretches if row["timeline"] == server["timeline"]]
    high, _, low = str(server["position"]).partition("/")
    at = (int(high, 16) << 32) + int(low, 16)
    return max(0, at - (max(last) + 1) * SEGMENT_BYTES) if last else None


def problems(report: Row, verdicts: Mapping[str, Row], now: float) -> list[Problem]:
    """What an operator has to look at."""
    found: list[Problem] = []
    server, store = report["server"], report["store"]
    if "error" in store:
        see = "docs/backup.md, The store is gone"
        found.append(Problem("store", str(store["error"]), see))
    if "error" in server:
        found.append(Problem("database", str(server["error"]), "salt-run database.status"))
    else:
        found += _archiving(server)
    if "error" in store:
        return found
    backups, stretches = store["backups"], store["stretches"]
    if not store["encrypted"]:
        found.append(Problem("store", "is not encrypted", "see repo1-cipher-type"))
    if not backups:
        found.append(Problem("backups", "there is none", "salt-run backup.now full"))
        return found
    last = newest(backups)
    if now - last["stop"] > STALE_SECONDS:
        what = f"the newest is of {stamp(last['stop'])}"
        see = "systemctl status saltworks-backup on the primary's machine"
        found.append(Problem("backups", what, see))
    good = [row for row in backups if counts(row, verdicts)]
    if not good:
        what = "none of them was restored: there is no backup that counts"
        found.append(Problem("backups", what, "salt-run backup.verify"))
    elif now - max(verdicts[row["label"]]["at"] for row in good) > UNVERIFIED_SECONDS:
        what = "none was restored for more than a week"
        found.append(Problem("backups", what, "salt-run backup.verify"))
    for row in backups:
        found += _of_one(row, verdicts.get(row["label"], {}))
    covered = spans(backups, stretches)
    if len(covered) > 1:
        what = f"WAL is missing: covered are {'; '.join(map(str, covered))}"
        found.append(Problem("archive", what, "docs/backup.md, WAL was given up"))
    if covered_until(last, stretches) != (stretches[-1]["until"] if stretches else None):
        what = f"WAL is missing since {last['label']}: no time after it is covered"
        found.append(Problem("archive", what, "salt-run backup.now diff"))
    return found


def table(report: Row, verdicts: Mapping[str, Row], now: float) -> dict[str, Any]:
    """All of it for the operator's screen."""
    server, store = report["server"], report["store"]
    shown: dict[str, Any] = {}
    if "error" not in store:
        covered = spans(store["backups"], store["stretches"])
        shown["backups"] = [_shown(row, verdicts) for row in reversed(store["backups"])]
        shown["being taken"] = store["busy"]
        shown["covered"] = [str(span) for span in covered]
        shown["kept"] = f"{report['keep_full']} full backups, and what needs them"
        shown["stored"] = size(sum(row["stored"] for row in store["backups"]))
    if "error" not in server:
        archiver = server["archiver"]
        lag = behind(server, store["stretches"]) if "error" not in store else None
        shown["archive"] = {
            "waiting": f"{server['waiting']} segments",
            "behind": "unknown" if lag is None else size(lag),
            "failures": archiver["failed_count"],
            "last failure": archiver["last_failed_time"] or "none",
        }
        if "error" not in store and store["stretches"]:
            shown["archive"]["stored up to"] = _up_to(store["stretches"][-1])
    shown["problems"] = [str(row) for row in problems(report, verdicts, now)]
    return shown


def size(count: float) -> str:
    """Bytes for the operator's screen."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _archiving(server: Row) -> list[Problem]:
    if server["archive_mode"] == "off":
        see = "restart PostgreSQL, whose configuration has it on"
        return [Problem("archive", "archive_mode is off: nothing is archived", see)]
    if "pgbackrest" not in server["archive_command"]:
        what = f"archive_command is {server['archive_command']!r}: nothing is archived"
        return [Problem("archive", what, "apply the database machine's role")]
    archiver, found = server["archiver"], []
    failed, last = archiver["last_failed_time"], archiver["last_archived_time"]
    if failed and (not last or datetime.fromisoformat(failed) > datetime.fromisoformat(last)):
        what = f"{archiver['last_failed_wal']} could not be archived at {failed}"
        found.append(Problem("archive", what, "docs/backup.md, The store is gone"))
    if server["waiting"] > BACKLOG:
        what = f"{server['waiting']} segments ({size(server['waiting'] * SEGMENT_BYTES)}) wait"
        found.append(Problem("archive", what, "docs/backup.md, The archive lags"))
    return found


def _of_one(backup: Row, verdict: Row) -> list[Problem]:
    found = []
    if verdict and not verdict["good"]:
        see = "docs/backup.md, A backup is bad"
        found.append(Problem(backup["label"], f"is bad: {verdict['why']}", see))
    if backup["damaged"]:
        what = "pages of the live database had wrong checksums when it was taken"
        found.append(Problem(backup["label"], what, "look at the primary's disk; pg_amcheck"))
    return found


def _up_to(stretch: Row) -> str:
    at = (stretch["last"] + 1) * SEGMENT_BYTES
    position = f"{at >> 32:X}/{at & 0xFFFFFFFF:X} of timeline {stretch['timeline']}"
    return f"{position}, at {stamp(stretch['until'])}"


def _shown(backup: Row, verdicts: Mapping[str, Row]) -> dict[str, Any]:
    verdict = verdicts.get(backup["label"], {})
    words = "never restored: does not count"
    if verdict:
        words = f"{stamp(verdict['at'])} on {verdict['machine']}: "
        words += "good" if verdict["good"] else f"bad: {verdict['why']}"
    return {
        "label": backup["label"],
        "type": backup["type"],
        "taken": stamp(backup["stop"]),
        "database": size(backup["bytes"]),
        "stored": size(backup["stored"]),
        "restored": words,
    }
