"""Backups of the database: what counts, which times are covered, and where a restore begins.

Pure functions over what a database machine reports (``pgbackrest.report``: backups, and stretches
of WAL without a hole) and what runners wrote down of backups that were restored. A number of a WAL
segment counts 16 MiB from the cluster's beginning; times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import Problem, Refused
from .lock import stamp

#: Name of the record in the bank: label to its last verdict.
RECORD = "backups"

#: PostgreSQL's name of a cluster in the repository; pgBackRest calls it a stanza.
STANZA = "synapse"

#: How long WAL may wait in a segment that is not full, in seconds: what a lost primary loses at
#: the most of what the store has.
ARCHIVE_SECONDS = 60

#: After so many seconds without a new backup, or a verified one, something is wrong.
STALE_SECONDS, UNVERIFIED_SECONDS = 26 * 3600, 8 * 86400

#: So many segments that wait to be archived are more than a busy minute's.
BACKLOG = 64

SEGMENT_BYTES = 16 << 20


#: In place of a time: all there is in the store, when the server itself is lost.
LATEST = "latest"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a restore to a time begins.

    :param label: of the backup.
    :param timeline: that recovery follows.
    :param bytes: of the cluster in the backup.
    """

    label: str
    timeline: int
    bytes: int


@dataclass(frozen=True)
class Span:
    """Times that a restore can be made to."""

    since: float
    until: float

    def __str__(self) -> str:
        return f"{stamp(self.since)} to {stamp(self.until)}"


def archive_settings(stanza: str = STANZA) -> dict[str, str]:
    """PostgreSQL's settings of a cluster whose WAL is archived, for its own or Patroni's file.

    ``archive_mode`` takes a restart, and is on from the beginning; the others a reload.
    """
    program = f"pgbackrest --stanza={stanza}"
    return {
        "archive_mode": "on",
        "archive_command": f"{program} archive-push %p",
        "archive_timeout": f"{ARCHIVE_SECONDS}s",
        "restore_command": f'{program} archive-get %f "%p"',
    }


def pgbackrest_pillar(
    *,
    endpoint: str,
    bucket: str,
    region: str,
    uri_style: str,
    access_key: str,
    secret_key: str,
    authority: str,
    cipher_pass: str,
    database: str,
    cluster: str = "15/main",
    unit: str = "postgresql@15-main",
    port: int = 5432,
    takes: bool = True,
    stated: Row | None = None,
) -> dict[str, Any]:
    """The formula's pillar of one database machine.

    :param endpoint: ``host:port`` of the store; for AWS ``s3.<region>.amazonaws.com``.
    :param uri_style: ``path``, or ``host`` for AWS.
    :param authority: PEM of who signed the store's certificate; empty for those of the system.
    :param cipher_pass: what all is encrypted with.
    :param database: the one to compare when a backup is verified.
    :param unit: that runs the cluster: with Patroni ``patroni``.
    :param takes: whether it takes a backup when it is its turn.
    :param stated: what the cluster map says: ``keep_full``, ``full_days``, ``hour``,
        ``queue_max``, where it does.
    """
    return {
        "stanza": STANZA,
        "cluster": cluster,
        "unit": unit,
        "port": port,
        "database": database,
        "takes": takes,
        "store": {
            "endpoint": endpoint,
            "region": region,
            "bucket": bucket,
            "uri_style": uri_style,
            "access_key": access_key,
            "secret_key": secret_key,
            "authority": authority,
        },
        "cipher_pass": cipher_pass,
        **(stated or {}),
    }


def spans(backups: Sequence[Row], stretches: Sequence[Row]) -> list[Span]:
    """The times that are covered, oldest first, those that touch as one."""
    found: list[Span] = []
    for row in sorted(backups, key=lambda row: float(row["stop"])):
        end = _end(row, stretches)
        if end is None or end < row["stop"]:
            continue
        if found and row["stop"] <= found[-1].until:
            found[-1] = Span(found[-1].since, max(found[-1].until, end))
        else:
            found.append(Span(row["stop"], end))
    return found


def moment(target: str) -> datetime:
    """A time as an operator writes it.

    :raises Refused: it is none, or has no zone.
    """
    example = "write one such as 2026-11-28T01:30:00+00:00"
    try:
        when = datetime.fromisoformat(target)
    except ValueError:
        raise Refused("restore", [Problem(f"target {target!r}", "is no time", example)]) from None
    if when.tzinfo is None:
        raise Refused("restore", [Problem(f"target {target!r}", "has no zone", example)])
    return when.astimezone(UTC)


def source(
    target: str, backups: Sequence[Row], stretches: Sequence[Row], now: float, live: bool
) -> Source:
    """Where a restore to a time begins.

    :param target: see :func:`moment`; or :data:`LATEST`, for a server that does not run.
    :param now: seconds since the epoch.
    :param live: whether the primary runs, and can archive what it has up to now.
    :raises Refused: it is no time, is to come, or is not covered; says what is.
    """
    if target == LATEST:
        return _latest(backups, stretches, live)
    when = moment(target).timestamp()
    if when >= now:
        what = f"is to come: it is {stamp(now)}"
        raise Refused("restore", [Problem(f"target {target!r}", what, "name an earlier time")])
    timeline = _timeline(when, stretches)
    fits = [
        row
        for row in backups
        if row["stop"] <= when
        and _leads_to(row, timeline, stretches)
        and _reaches(row, when, timeline, stretches, live)
    ]
    if not fits:
        covered = "; ".join(map(str, spans(backups, stretches))) or "nothing"
        if live and covered != "nothing":
            covered += ", and from there to now"
        what = f"is not covered; covered is {covered}"
        raise Refused("restore", [Problem(f"target {target!r}", what, "name a time in there")])
    best = max(fits, key=lambda row: float(row["stop"]))
    return Source(best["label"], timeline, best["bytes"])


def _latest(backups: Sequence[Row], stretches: Sequence[Row], live: bool) -> Source:
    if live:
        what = "the server runs, and has all that the store has"
        raise Refused("restore", [Problem(f"target {LATEST!r}", what, "name a time, or stop it")])
    timeline = stretches[-1]["timeline"] if stretches else 1
    fits = [row for row in backups if _at(row, stretches) is not None]
    best = newest([row for row in fits if _leads_to(row, timeline, stretches)])
    return Source(best["label"], timeline, best["bytes"])


def counts(backup: Row, verdicts: Mapping[str, Row]) -> bool:
    """Whether a backup is one: it was restored, and was good."""
    return bool(verdicts.get(backup["label"], {}).get("good"))


def newest(backups: Sequence[Row], label: str = "") -> Row:
    """The newest backup, or that of a label.

    :raises Refused: there is none.
    """
    fits = [row for row in backups if label in ("", row["label"])]
    if not fits:
        what = f"there is no backup {label}".rstrip()
        there = ", ".join(row["label"] for row in backups) or "none"
        see = f"there: {there}; salt-run backup.now full"
        raise Refused("backup", [Problem("store", what, see)])
    return max(fits, key=lambda row: float(row["stop"]))


def kept(verdicts: Mapping[str, Row], backups: Sequence[Row]) -> dict[str, Row]:
    """Verdicts on backups that are still there."""
    labels = {row["label"] for row in backups}
    return {label: row for label, row in verdicts.items() if label in labels}


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
    if _end(last, stretches) != (stretches[-1]["until"] if stretches else None):
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


def _joined(before: Row, after: Row) -> bool:
    """As ``saltworks_backup_facts.joined`` of the machines."""
    newer = bool(after["timeline"] > before["timeline"])
    return newer and bool(after["first"] <= before["last"] + 1)


def _at(backup: Row, stretches: Sequence[Row]) -> int | None:
    """Index of the stretch that has the end of a backup, if what it needs is there."""
    for index, row in enumerate(stretches):
        if row["timeline"] == backup["timeline"] and row["first"] <= backup["last"] <= row["last"]:
            return index if row["first"] <= backup["first"] else None
    return None


def _end(backup: Row, stretches: Sequence[Row]) -> float | None:
    """Until when recovery gets from a backup, in the stored WAL."""
    at = _at(backup, stretches)
    if at is None:
        return None
    while at + 1 < len(stretches) and _joined(stretches[at], stretches[at + 1]):
        at += 1
    return float(stretches[at]["until"])


def _timeline(when: float, stretches: Sequence[Row]) -> int:
    """The timeline that was the database's at a time.

    One that ended in a failover is contained in its successor; one that a restore put aside is not,
    and its later WAL is to be found on it alone.
    """
    bounds: dict[int, dict[str, float]] = {}
    for row in stretches:
        known = bounds.setdefault(row["timeline"], dict(row))
        known["last"] = max(known["last"], row["last"])
    order = sorted(bounds)
    chosen = order[-1] if order else 1
    for earlier, later in zip(reversed(order[:-1]), reversed(order), strict=False):
        if when >= bounds[later]["since"]:
            break
        if bounds[earlier]["last"] >= bounds[later]["first"]:
            chosen = earlier
    return chosen


def _leads_to(backup: Row, timeline: int, stretches: Sequence[Row]) -> bool:
    """Whether a timeline begins after a backup, or is its own."""
    if backup["timeline"] > timeline:
        return False
    first: dict[int, int] = {}
    for row in stretches:
        first.setdefault(row["timeline"], row["first"])
    later = [at for number, at in first.items() if backup["timeline"] < number <= timeline]
    return all(backup["last"] < at for at in later)


def _reaches(
    backup: Row, when: float, timeline: int, stretches: Sequence[Row], live: bool
) -> bool:
    """Whether recovery gets from a backup to a time without a hole in the WAL."""
    found = [row for row in stretches if row["timeline"] <= timeline]
    at = _at(backup, found)
    if at is None:
        return False
    while at + 1 < len(found) and _joined(found[at], found[at + 1]):
        at += 1
    newest_there = at + 1 == len(stretches)
    return when <= found[at]["until"] or (live and newest_there)
