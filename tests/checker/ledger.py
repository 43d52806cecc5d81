"""What a run of the checker has counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

KINDS = ("event", "account data", "login", "sync", "cache")


class Ledger:
    """For many threads.

    :ivar checks: by kind.
    :ivar bad: by kind: stale, or lost for ever.
    :ivar examples: some of what was bad, in words.
    :ivar errors: what clients were answered instead of what they asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.checks: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.examples: list[str] = []
        self.errors: list[str] = []

    def check(self, kind: str, good: bool, what: str, many: int = 1) -> None:
        with self._lock:
            self.checks[kind] += many
            if not good:
                self.bad[kind] += 1
                self.examples = [*self.examples[-19:], f"{kind}: {what}"]

    def error(self, what: str) -> None:
        with self._lock:
            self.errors.append(what)

    @property
    def total(self) -> int:
        return self.checks.total()

    def rows(self) -> list[list[str]]:
        """A row per kind: checks, bad."""
        return [[kind, str(self.checks[kind]), str(self.bad[kind])] for kind in KINDS]

    def as_json(self) -> dict[str, Any]:
        """What :meth:`of` takes."""
        return {
            "checks": dict(self.checks), "bad": dict(self.bad),
            "examples": self.examples, "errors": self.errors,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Ledger:
        """The tally of a checker that ran as another process."""
        made = cls()
        made.checks.update(row["checks"])
        made.bad.update(row["bad"])
        made.examples, made.errors = list(row["examples"]), list(row["errors"])
        return made

    def __str__(self) -> str:
        found = ", ".join(f"{kind} {self.bad[kind]}/{self.checks[kind]}" for kind in KINDS)
        return f"{found}; {len(self.errors)} errors; {self.examples[-5:]} {self.errors[-3:]}"
