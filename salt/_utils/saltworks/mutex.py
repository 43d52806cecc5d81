"""A file that one process at a time holds: for moments, never for the length of a run.

What lasts longer, such as an orchestration, holds the cluster's lock (:mod:`saltworks.lock`),
whose record is changed under such a mutex. The kernel lets go of it when its holder ends,
however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import Problem, Refused

#: How long the others, who read and write one small file each, may take, in seconds.
WAIT_SECONDS = 10.0


@contextlib.contextmanager
def held(path: Path, seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold a file's mutex within the block; threads of one process exclude each other as well.

    :param path: the file; it is made, mode 0600, and stays.
    :param seconds: how long to wait for it.
    :raises Refused: others held it all that time.
    """
    handle = opened(path)
    try:
        end = time.monotonic() + seconds
        while not taken(handle):
            if time.monotonic() > end:
                what = f"was held by another process for {seconds:.0f} s"
                see = f"see who it is: fuser {path}"
                raise Refused("records", [Problem(str(path), what, see)])
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def opened(path: Path) -> int:
    """A handle of a mutex's file, which nobody holds by it yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def taken(handle: int) -> bool:
    """Take the mutex if it is free; it is free again when every copy of the handle is closed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def let_go(handle: int) -> None:
    """Free the mutex, also for processes that were born with a copy of the handle."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
