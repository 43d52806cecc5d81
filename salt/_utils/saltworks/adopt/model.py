"""What an adoption says: a verdict for every key found, a cluster map, secrets, problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import Problem

Kind = Literal["kept", "renamed", "replaced", "dropped-no-effect", "cannot-carry"]

#: Every kind of verdict, in the order in which an operator should read them.
KINDS: tuple[Kind, ...] = ("cannot-carry", "replaced", "renamed", "dropped-no-effect", "kept")


@dataclass(frozen=True)
class Verdict:
    """What becomes of one key.

    :param key: dotted path in the old file, such as ``listeners[0].tls``; keys of the
        web server begin with ``nginx``.
    :param verdict: what becomes of it.
    :param reason: why.
    :param new_key: where its value stands now, when that is another place.
    :param what_to_do: for the operator, empty when nothing is to be done.
    :param where: ``file:line``, empty for a key that no file has.
    :param stated: the old file does not have the key; the new release would do
        something else without it, so the old behaviour is written down.
    """

    key: str
    verdict: Kind
    reason: str
    new_key: str = ""
    what_to_do: str = ""
    where: str = ""
    stated: bool = False


@dataclass(frozen=True)
class Adoption:
    """The outcome of :func:`saltworks.adopt.judge`.

    :param verdicts: one for every key found, plus the stated ones.
    :param cluster_map: value of the pillar key ``cluster``; empty when the old
        configuration could not be read at all.
    :param secrets: plain secrets by the name that the cluster map refers to.
    :param problems: what forbids going on. None of them was in ``accepted``.
    :param warnings: what the operator should know, and accepted losses.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    cluster_map: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def verdict_of(self, key: str) -> Verdict | None:
        """The verdict on a key, or None."""
        return next((row for row in self.verdicts if row.key == key), None)


def dotted(path: tuple[str | int, ...]) -> str:
    """A path as people write it: ``listeners[0].resources[1].names``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
