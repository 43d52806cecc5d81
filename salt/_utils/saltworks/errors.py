"""Problems an operator can meet: the thing, the place, the next step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One reason not to go on.

    :param place: where it is: a path in the cluster map, or ``machine: thing``.
    :param what: what is wrong, with the value that was found.
    :param next_step: what the operator does about it.
    """

    place: str
    what: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what} -> {self.next_step}"


class Refused(Exception):
    """Raised with *all* problems at once; nothing was changed before it.

    :param subject: what was refused, such as ``M1``.
    :param problems: at least one problem.
    """

    def __init__(self, subject: str, problems: Iterable[Problem]) -> None:
        self.subject = subject
        self.problems = sorted(set(problems))
        super().__init__(listing(subject, self.problems))

    @property
    def line(self) -> str:
        """All of it in one line, for a log."""
        return "; ".join(map(str, self.problems))


def listing(subject: str, problems: Iterable[Problem]) -> str:
    """The operator's text for a list of problems, one a line."""
    rows = sorted(set(problems))
    count = f"{len(rows)} problem{'s' if len(rows) != 1 else ''}"
    return "\n".join(
        [f"{subject} refused, nothing was changed: {count}"] + [f"  - {row}" for row in rows]
    )
