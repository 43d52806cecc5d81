"""The media tree, what is known of its files and of the store's, and what is decided from that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

#: What the storage provider stores. Everything else, the cache of URL previews above all, is of
#: this machine alone and is never copied, compared or pruned.
DIRECTORIES = ("local_content", "local_thumbnails", "remote_content", "remote_thumbnail")

#: What the name of a file begins with that is being fetched, see ``saltworks_media_local.py`` too.
PARTIAL = ".saltworks-"

#: How many names an answer lists.
NAMES = 20


class Failed(Exception):
    """Ends the run; the text is the operator's."""


@dataclass(frozen=True)
class File:
    """A file of the local tree. used: when it was last written or read, in seconds."""

    size: int
    mtime: int
    used: float


@dataclass(frozen=True)
class Entry:
    """What is known of a file, see above."""

    size: int
    mtime: int
    sha256: str
    verified: str = ""

    def is_of(self, file: File) -> bool:
        """Whether the local file is still the one that this was written down of."""
        return (self.size, self.mtime) == (file.size, file.mtime)


@dataclass(frozen=True)
class Stored:
    """An object's bytes, by the storage machine or as they were read."""

    size: int
    sha256: str


class Beginning:
    """Takes an object's bytes as they are read, and keeps the hash of the first of them.

    :param size: how many.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._total = hashlib.sha256()

    def write(self, block: bytes) -> int:
        """As a file's."""
        self._total.update(block[: self._left])
        self._left -= min(self._left, len(block))
        return len(block)

    def is_of(self, entry: Entry) -> bool:
        """Whether the object begins with all that the file has."""
        return not self._left and self._total.hexdigest() == entry.sha256


def to_copy(local: Mapping[str, File], known: Mapping[str, Entry]) -> list[str]:
    """Files that were never sent, or have changed since."""
    return sorted(
        path for path, file in local.items() if path not in known or not known[path].is_of(file)
    )


def settled(local: Mapping[str, File], known: Mapping[str, Entry]) -> set[str]:
    """Files of which it was seen that the store has the same bytes."""
    return {
        path
        for path, file in local.items()
        if path in known and known[path].verified and known[path].is_of(file)
    }


def same(
    local: Mapping[str, File], known: Mapping[str, Entry], store: Mapping[str, Stored]
) -> set[str]:
    """Files whose bytes the storage machine has hashed to the same."""
    return {
        path
        for path, file in local.items()
        if (entry := known.get(path)) is not None
        and entry.is_of(file)
        and store.get(path) == Stored(entry.size, entry.sha256)
    }


def to_fetch(local: Mapping[str, File], store: Mapping[str, Stored]) -> list[str]:
    """Objects that this machine has no file of."""
    return sorted(path for path in store if path not in local and is_media(path))


def to_prune(
    local: Mapping[str, File],
    *,
    keep_bytes: int,
    keep_seconds: float,
    idle_seconds: float,
    now: float,
) -> list[str]:
    """Which local files shall go, the longest unused first.

    :param keep_bytes: what all files together may take.
    :param keep_seconds: unused for longer than that they go whatever the room.
    :param idle_seconds: used within that they stay whatever the room.
    """
    left = sum(file.size for file in local.values())
    chosen = []
    for path, file in sorted(local.items(), key=lambda item: (item[1].used, item[0])):
        unused = now - file.used
        if unused < idle_seconds or (unused <= keep_seconds and left <= keep_bytes):
            break
        chosen.append(path)
        left -= file.size
    return chosen


def judged(
    entry: Entry, found: Stored | None, known: Entry | None, *, begins: bool
) -> Literal["same", "missing", "broken", "other"]:
    """What a file is beside its object, where the store is what counts.

    :param entry: the file as it is now.
    :param found: the object as it was read; None: there is none.
    :param known: what was written down of the file before.
    :param begins: whether the object begins with all that the file has.
    :returns: ``broken``: a part of its object, as a full disk leaves it, or not what was once seen
        to be the same while the object still is: nothing is lost with it. ``other``: somebody must
        look.
    """
    if found is None:
        return "missing"
    if found == Stored(entry.size, entry.sha256):
        return "same"
    proven = known is not None and known.verified and found == Stored(known.size, known.sha256)
    return "broken" if proven or begins else "other"


def is_media(path: str) -> bool:
    """Whether a relative path is one of those that the provider stores."""
    steps = path.split("/")
    return steps[0] in DIRECTORIES and not any(step in ("", ".", "..") for step in steps)


def walked(root: Path) -> dict[str, File]:
    """Every regular file that the provider stores, by its path below the media folder."""
    return {
        path: described(status)
        for path, status in _files(root)
        if not path.rpartition("/")[2].startswith(".")
    }


def partial(root: Path, before: float) -> list[str]:
    """Files that were being fetched and never became whole, by their path like the others.

    :param before: written to last before that, in seconds since the epoch.
    """
    return [
        path
        for path, status in _files(root)
        if path.rpartition("/")[2].startswith(PARTIAL) and status.st_mtime < before
    ]


def _files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [name for name in DIRECTORIES if (root / name).is_dir()]
    while waiting:
        folder = waiting.pop()
        try:
            rows = list(os.scandir(root / folder))
        except FileNotFoundError:
            # Synapse removes a folder with its last file.
            continue
        for row in rows:
            path = f"{folder}/{row.name}"
            if row.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif row.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield path, row.stat(follow_symlinks=False)


def described(status: os.stat_result) -> File:
    """What matters of a file."""
    used = max(status.st_mtime, status.st_atime)
    return File(status.st_size, status.st_mtime_ns, used)


def digest(file: BinaryIO) -> str:
    """SHA-256 of a file from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def ledger(lines: Iterable[bytes]) -> dict[str, Stored]:
    """The storage machine's list of its files, as ``storage.hash`` writes it.

    :raises Failed: when it does not end as a whole list ends.
    """
    found: dict[str, Stored] = {}
    end: dict[str, Any] = {}
    for line in lines:
        row = json.loads(line)
        if "path" in row:
            found[row["path"]] = Stored(row["size"], row["sha256"])
        else:
            end = row
    if end.get("files") != len(found):
        raise Failed("the storage machine's list of its files is not whole: run storage.hash there")
    return found


def names(paths: list[str]) -> str:
    """Some names, for a message."""
    more = f" and {len(paths) - NAMES} more" if len(paths) > NAMES else ""
    return ", ".join(paths[:NAMES]) + more
