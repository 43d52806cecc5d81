"""What parts are described with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ask:
    """A call of an execution function on a machine.

    :param machine: minion id.
    :param function: such as ``postgres.status``.
    :param kwargs: its arguments.
    :param given: further arguments, each the answer of an earlier step, by its function.
    :param undone: of one that is only tried: what is to be done where it failed.
    """

    machine: str
    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    undone: str = ""


@dataclass(frozen=True)
class Steps:
    """What is done while Synapse stands still; each step does nothing when it is done.

    :param before: in this order, right before the door closes; a failure ends it all, and
        nobody has waited.
    :param act: in this order, after Synapse has stopped and before its new configuration.
    :param undo: the way back, in this order, before its old configuration returns. An
        ``undo`` that fails leaves the door shut: list only what must be certain before
        Synapse may write to where it was.
    :param tried: the way back begins with these, before Synapse may write to where it was. One
        that fails keeps nobody waiting: it is said, and whoever works there next does it first.
        Each answers what it did, in words; empty when there was nothing to do.
    :param needed: asked first of all; if it answers False there is nothing to do. None:
        it is always done.
    """

    before: tuple[Ask, ...] = ()
    act: tuple[Ask, ...] = ()
    undo: tuple[Ask, ...] = ()
    tried: tuple[Ask, ...] = ()
    needed: Ask | None = None


def errors(told: Mapping[str, Any]) -> list[str]:
    """What machines could not answer.

    :param told: by the name of the question, its answer or ``{"error": text}``.
    """
    return [
        str(answer["error"])
        for answer in told.values()
        if isinstance(answer, Mapping) and "error" in answer
    ]
