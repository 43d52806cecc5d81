"""Beacon: the set of Redis machines that this machine's Sentinel watches has changed.

An event when something is wrong that was not, when it is right again, and when another Redis is the
master: before somebody's messages are late. The event's data is a hint; ``redis_set.status`` is the
truth.
"""

from __future__ import annotations

import re
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_set"

__salt__: dict[str, Any]

#: A failover passes by in less: what is wrong must still be so at the second look.
LOOKS = 2

#: What was told last, what the last look saw, and how many looks in a row have seen just that.
_past: dict[str, Any] = {"told": None, "last": None, "looks": 0}


def __virtual__() -> str:
    return __virtualname__


def validate(config: list[dict[str, Any]]) -> tuple[bool, str]:
    """There is no configuration but Salt's own, such as ``interval``."""
    if not isinstance(config, list) or not all(isinstance(row, dict) for row in config):
        return False, "the beacon redis_set wants a list: [{interval: 15}]"
    return True, "Valid beacon configuration"


def beacon(config: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One event, tag ``changed``, if it is news: ``master`` and ``wrong``.

    :returns: nothing, or one row.
    """
    seen = _seen()
    now = {**seen, "wrong": [_without_reason(row) for row in seen["wrong"]]}
    _past["looks"] = _past["looks"] + 1 if now == _past["last"] else 1
    _past["last"] = now
    if now == _past["told"]:
        return []
    if _past["told"] is None and not now["wrong"]:
        # As it should be: nobody needs to hear that the minion has started.
        _past["told"] = now
        return []
    if _past["looks"] < LOOKS:
        return []
    _past["told"] = now
    return [{"tag": "changed", **seen}]


def _seen() -> dict[str, Any]:
    try:
        shown = __salt__["redis_set.status"]()
    except CommandExecutionError as error:
        return {"master": "", "wrong": [str(error)]}
    # Numbers would make every look a new one.
    return {"master": shown["master"], "wrong": [_steady(row) for row in shown["wrong"]]}


def _steady(row: dict[str, str]) -> str:
    what = row["what"].partition(" has said nothing to ")
    return f"{what[0]} is silent" if what[1] else row["what"]


def _without_reason(what: str) -> str:
    """One that is away refuses now, and times out then: it is the same trouble."""
    return re.sub(r" does not answer \(.*\)", " does not answer", what)
