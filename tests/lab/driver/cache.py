"""Things made once and kept, each named by the hash of what made it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

Maker = Callable[[Path], None]

BUILT: list[str] = []
"""What this process had to make because it was not there."""


def digest(inputs: object) -> str:
    """Short hash of anything JSON can hold."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_digest(*paths: Path) -> str:
    """Hash over the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; a dead holder's lock is gone with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def path_of(cache: Path, kind: str, inputs: object) -> Path:
    """Where the thing of this kind made from ``inputs`` stands or will stand."""
    return cache / f"{kind}-{digest(inputs)}"


def made(cache: Path, kind: str, inputs: object, make: Maker) -> Path:
    """The cached directory for ``inputs``, made by ``make(empty directory)`` if missing.

    It appears under its name by one rename, so a killed maker leaves nothing half done; the
    next one removes its rests.
    """
    path = path_of(cache, kind, inputs)
    if path.exists():
        return path
    with locked(cache / "locks" / path.name):
        if path.exists():
            return path
        work = cache / "tmp" / path.name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        make(work)
        work.rename(path)
        BUILT.append(path.name)
    return path
