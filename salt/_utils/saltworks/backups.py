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

#: How long a connection to the store, and one segment out of it, may take where a server recovers.
CONNECT_SECONDS, FETCH_SECONDS = 1, 10

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


def archive_settings(host: str, port: int, stanza: str = STANZA) -> dict[str, str]:
    """PostgreSQL's settings of a cluster whose WAL is archived, for its own or Patroni's file.

    A standby that is promoted asks for WAL twice or more, and waits for the answers: a store that
    is away must not hold up a failover, and pgBackRest tries for minutes. A code up to 125 says
    that there is none (PostgreSQL: ``restore_command``).

    ``archive_mode`` takes a restart, and is on from the beginning; the others a reload.

    :param host: of the store.
    :param port: of the store.
    """
    program = f"pgbackrest --stanza={stanza}"
    there = f'timeout {CONNECT_SECONDS} bash -c "</dev/tcp/{host}/{port}"'
    return {
        "archive_mode": "on",
        "archive_command": f"{program} archive-push %p",
        "archive_timeout": f"{ARCHIVE_SECONDS}s",
        "restore_command": f'{there} && timeout {FETCH_SECONDS} {program} archive-get %f "%p"',
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
        until = covered_until(row, stretches)
        if until is None or until < row["stop"]:
            continue
        if found and row["stop"] <= found[-1].until:
            found[-1] = Span(found[-1].since, max(found[-1].until, until))
        else:
            found.append(Span(row["stop"], until))
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


def covered_until(backup: Row, stretches: Sequence[Row]) -> float | None:
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
