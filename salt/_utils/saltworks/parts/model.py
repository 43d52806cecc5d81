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
    """

    machine: str
    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """What is done while Synapse stands still; each step does nothing when it is done.

    :param before: in this order, right before the door closes; a failure ends it all, and
        nobody has waited.
    :param act: in this order, after Synapse has stopped and before its new configuration.
    :param undo: the way back, in this order, before its old configuration returns. An
        ``undo`` that fails leaves the door shut: list only what must be certain before
        Synapse may write to where it was.
    """

    before: tuple[Ask, ...] = ()
    act: tuple[Ask, ...] = ()
    undo: tuple[Ask, ...] = ()
