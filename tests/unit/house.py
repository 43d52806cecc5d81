"""What runners have on a master: records, and other processes that work on a milestone."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from saltworks import milestone, owners

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

    def map(self) -> None:
        """There is no cluster map."""


@contextlib.contextmanager
def living() -> Iterator[milestone.Owner]:
    """Another process, which lives within the block."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            started = owners.stat_field(process.pid, 19)
            assert started is not None
            yield milestone.Owner(owners.this_process().boot_id, process.pid, started)
        finally:
            process.kill()
