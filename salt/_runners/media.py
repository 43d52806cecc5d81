"""The media: their store, and the caches of the machines that serve them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from saltworks import media_report, movement
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines, bring_modules, or_error
from saltworks.parts import media
from saltworks.plan import USER
from saltworks.tree import Tree

__opts__: dict[str, Any]

#: A machine that says nothing for so many seconds, also not that it is at work, is away.
ANSWER_SECONDS = 5

#: What an answer may take in all, in seconds: new modules, a cache that is walked, and what a list
#: of the store's objects may take beyond its own bound.
SYNC_SECONDS, REPORT_SECONDS, MORE_SECONDS = 30, 45, 30

#: For how long the store is asked for its objects.
LIST_SECONDS = 20


@refusing
def status(seconds: float = LIST_SECONDS) -> dict[str, Any]:
    """The store's objects, each cache, when it was pruned last, and what is wrong.

    :param seconds: for how long the store's objects are listed: a request for each folder of them
        and each thousand in it. What was counted until then is shown, with ``whole: False``.
    :returns: ``store`` (``machine``, ``objects``, ``bytes``, ``whole``, and what that has cost:
        ``asked``, the machine that asked, ``requests``, ``seconds``); ``caches``, machine to
        ``files``, ``bytes``, its bounds (``keep_bytes``, ``keep_days``), ``unverified`` files and
        ``unverified_bytes`` (it has not compared them with their object yet, as it does before one
        goes), ``timer``, ``last_prune`` (``at``, ``files``, ``bytes``, ``error``), or an ``error``;
        ``pruning``, whether caches are to be pruned by themselves; and ``problems``, all that is
        wrong, a line each with the next step.
    :raises saltworks.errors.Refused: the media have no store yet.

    CLI Example:

    .. code-block:: bash

        salt-run media.status
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    placement = house.placement(movement.map_of(house))
    names = media.caches(placement)
    if not names:
        do = "run salt-run state.orchestrate orch.m3.media first"
        raise Refused("media", [Problem("the media", "have no store yet", do)])
    away = bring_modules(machines, names, timeout=ANSWER_SECONDS, bound=SYNC_SECONDS)
    here = [name for name in names if name not in away]
    answers: Mapping[str, Any] = {}
    if here:
        answers = machines.calls(
            here, "media_store.report", USER, timeout=ANSWER_SECONDS, bound=REPORT_SECONDS
        )
    rows = {name: or_error(answers.get(name, MachineError(away.get(name)))) for name in names}
    usage = _usage(machines, rows, float(seconds))
    prunes = media.prunes(placement)
    return dict(media_report.table(placement.media, rows, usage, prunes, time.time()))


def _usage(
    machines: Machines, rows: Mapping[str, Mapping[str, Any]], seconds: float
) -> Mapping[str, Any]:
    """What the store has, by the first machine that could say how its cache is."""
    asked = next((name for name, row in rows.items() if "error" not in row), "")
    if not asked:
        return {"error": "no machine with its keys could be asked"}
    bound = seconds + MORE_SECONDS
    try:
        found = machines.call(
            asked, "media_store.usage", USER, seconds, timeout=ANSWER_SECONDS, bound=bound
        )
    except MachineError as error:
        return {"error": str(error)}
    return {**found, "asked": asked}
