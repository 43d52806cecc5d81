"""What pgBackRest says of a repository, in few words: backups, and stretches of archived WAL.

Pure functions. Sources: `pgbackrest info --output=json` and `pgbackrest repo-ls --output=json`
of pgBackRest 2.45; names of WAL segments: PostgreSQL, xlog_internal.h.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

#: PostgreSQL's default, which Debian does not change.
SEGMENT_BYTES = 16 << 20

#: Segments with one high part in their name.
_OF_ONE_LOG = (1 << 32) // SEGMENT_BYTES

_SEGMENT = re.compile(r"(?:.*/)?([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(?:-[0-9a-f]{40}[.\w]*)?")
_HISTORY = re.compile(r"(?:.*/)?([0-9A-F]{8})\.history")


def segment(name: str) -> tuple[int, int]:
    """Timeline and running number of a WAL segment.

    :param name: 24 hexadecimal digits, or the object that holds the segment.
    :raises ValueError: it is none.
    """
    found = _SEGMENT.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no WAL segment")
    timeline, log, low = (int(part, 16) for part in found.groups())
    return timeline, log * _OF_ONE_LOG + low


def backups(stanza: Mapping[str, Any]) -> list[Json]:
    """The backups of the cluster as it is now, oldest first.

    :param stanza: one element of pgBackRest's ``info``.
    :returns: ``label``, ``type``, ``start`` and ``stop`` (seconds since the epoch), ``timeline``,
        ``first`` and ``last`` (numbers of the WAL segments it cannot do without), ``bytes`` (of
        the cluster), ``stored`` (of this backup in the repository), ``damaged`` (pages with a
        wrong checksum were found when it was taken).
    """
    current = max((row["id"] for row in stanza.get("db", [])), default=0)
    return [
        {
            "label": row["label"],
            "type": row["type"],
            "start": row["timestamp"]["start"],
            "stop": row["timestamp"]["stop"],
            "timeline": segment(row["archive"]["stop"])[0],
            "first": segment(row["archive"]["start"])[1],
            "last": segment(row["archive"]["stop"])[1],
            "bytes": row["info"]["size"],
            "stored": row["info"]["repository"]["delta"],
            "damaged": bool(row.get("error")),
        }
        for row in stanza.get("backup", [])
        if row["database"]["id"] == current and row["archive"]["start"]
    ]


def archive_id(stanza: Mapping[str, Any]) -> str:
    """Folder of the WAL of the cluster as it is now, empty when there is none yet."""
    current = max((row["id"] for row in stanza.get("db", [])), default=0)
    return next(
        (row["id"] for row in stanza.get("archive", []) if row["database"]["id"] == current), ""
    )


def stretches(listing: Mapping[str, Mapping[str, Any]]) -> list[Json]:
    """Archived WAL without a hole in it, oldest first.

    :param listing: of the folder :func:`archive_id`, path to ``time`` and more.
    :returns: ``timeline``, ``first`` and ``last`` (numbers of segments), ``since`` and ``until``
        (when the first and the last were stored; where a timeline begins: when that was). Times
        of objects are cut to whole seconds, and are given as the end of theirs.
    """
    begun = {
        int(found[1], 16): int(row["time"]) + 1
        for path, row in listing.items()
        if (found := _HISTORY.fullmatch(path))
    }
    stored: dict[tuple[int, int], int] = {}
    for path, row in listing.items():
        if _SEGMENT.fullmatch(path) and row.get("type") == "file":
            stored[segment(path)] = int(row["time"]) + 1
    rows: list[Json] = []
    for (timeline, number), when in sorted(stored.items()):
        last = rows[-1] if rows else None
        if last and last["timeline"] == timeline and last["last"] + 1 == number:
            last |= {"last": number, "until": max(when, last["until"])}
            continue
        new = last is None or last["timeline"] != timeline
        since = begun.get(timeline, when) if new else when
        rows.append(
            {"timeline": timeline, "first": number, "last": number, "since": since, "until": when}
        )
    return rows


def joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether recovery gets from one stretch into the next: by a new timeline, without a hole."""
    newer = bool(after["timeline"] > before["timeline"])
    return newer and bool(after["first"] <= before["last"] + 1)


def leads_to_the_end(backup: Mapping[str, Any], found: list[Json]) -> bool:
    """Whether recovery gets from a backup to the newest WAL there is."""
    at = next(
        (
            index
            for index, row in enumerate(found)
            if row["timeline"] == backup["timeline"]
            and row["first"] <= backup["last"] <= row["last"]
        ),
        None,
    )
    if at is None:
        return False
    return all(joined(*pair) for pair in zip(found[at:], found[at + 1 :], strict=False))
