"""What runners have on a master: records, and other processes that work on a milestone."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from saltworks import lock, owners

from tests.unit.modules.minion_modules import load


class Records:
    """``salt.cache.Cache`` in memory."""

    def __init__(self, **rows: Any) -> None:
        self.rows = rows

    def fetch(self, bank: str, key: str) -> Any:
        return self.rows.get(key)

    def store(self, bank: str, key: str, data: Any) -> None:
        self.rows[key] = data


class House:
    """A tree with records, and a runner over it as ``module``."""

    def __init__(self, runner: str, **rows: Any) -> None:
        self.store = Records(**rows)
        self.module: Any = load("_runners", runner)
        vars(self.module)["Tree"] = self

    def of(self, opts: Any) -> House:
        return self

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        row = dict(self.store.rows.get(key, {}))
        yield row
        self.store.rows[key] = row

    def map(self) -> None:
        """There is no cluster map."""


def held(owner: owners.Owner, reason: str, seconds: float = 60) -> dict[str, Any]:
    """The lock's record while a process holds it.

    :param seconds: for how much longer.
    """
    now = time.time()
    return lock.Hold(owner, reason, now - 60, now + seconds).as_row()


@contextlib.contextmanager
def living() -> Iterator[owners.Owner]:
    """Another process, which lives within the block."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            started = owners.stat_field(process.pid, 19)
            assert started is not None
            yield owners.Owner(owners.this_process().boot_id, process.pid, started)
        finally:
            process.kill()
