"""Passes of reconcile: any number of pokes cost at most two, and none is lost.

A poke leaves a mark, ``reconcile.wanted``, and starts the process that makes the passes,
unless it is there: that holds ``reconcile.mutex``, by a handle that it is born with, and lets
go of it when it ends, however that ends. It takes the mark away, makes a pass, and looks for
the mark again. The next pass begins no sooner than ``SPACING_SECONDS`` after the last one
did, so that what comes in a burst is one pass; for so long the process stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import mutex

#: Longer than the bursts that machines make that start together, in seconds.
SPACING_SECONDS = 3.0


def wanted(records: str | os.PathLike[str]) -> bool:
    """Whether a pass is due that has not begun: it will see all that is so now."""
    return _mark(records).exists()


def poke(records: str | os.PathLike[str], start: Callable[[int], None]) -> bool:
    """A pass is made after this.

    :param records: the records' folder.
    :param start: starts the process, which inherits the handle that it is given.
    :returns: whether it was started; else it was there.
    """
    handle = mutex.opened(_mutex(records))
    try:
        _mark(records).touch()
        if not mutex.taken(handle):
            return False
        start(handle)
        return True
    finally:
        os.close(handle)


def make(
    records: str | os.PathLike[str],
    once: Callable[[], None],
    handle: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Make passes until none is wanted.

    :param once: makes one.
    :param handle: of the mutex, when this process was born with it.
    :param sleep: waits for seconds.
    :param clock: seconds.
    :returns: how many were made; 0 when another process makes them, which makes one after this.
    """
    if handle is None:
        # Whoever makes them may be past looking, and only stay for the spacing.
        _mark(records).touch()
        handle = mutex.opened(_mutex(records))
        if not mutex.taken(handle):
            os.close(handle)
            return 0
    made = 0
    while True:
        _mark(records).unlink(missing_ok=True)
        began = clock()
        try:
            once()
        except BaseException:
            mutex.let_go(handle)
            raise
        made += 1
        # With the mutex: a process that is started now would not know when this pass began.
        sleep(max(0.0, SPACING_SECONDS - (clock() - began)))
        if not wanted(records):
            mutex.let_go(handle)
            # Who poked between the look and the letting go found the mutex held.
            if not wanted(records):
                return made
            handle = mutex.opened(_mutex(records))
            if not mutex.taken(handle):
                os.close(handle)
                return made


def starter(opts: Mapping[str, Any]) -> Callable[[int], None]:
    """What starts the process: a ``salt-run`` of its own.

    The reactor's threads are few, share one interpreter, and what they take in memory stays
    with the master.

    :param opts: the master's options.
    """

    def start(handle: int) -> None:
        # Not the program of that name: this very Salt, wherever it is installed.
        run = "from salt.scripts import salt_run; salt_run()"
        folder = f"--config-dir={opts['config_dir']}"
        nothing = subprocess.DEVNULL
        subprocess.Popen(
            [sys.executable, "-c", run, folder, "reconcile.run", f"handle={handle}"],
            pass_fds=[handle],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )

    return start


def _mark(records: str | os.PathLike[str]) -> Path:
    return Path(records) / "reconcile.wanted"


def _mutex(records: str | os.PathLike[str]) -> Path:
    return Path(records) / "reconcile.mutex"
