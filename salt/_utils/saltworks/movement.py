"""A member goes from state to state: what the registry and the records say, under the lock."""

from __future__ import annotations

import time
from typing import Any

from . import admission, bank, clustermap, joins, lock, registry
from .errors import Problem, Refused
from .telling_run import Ledger
from .tree import Tree


def mine(house: Tree, what: str) -> Tree:
    """The tree, as long as the cluster's lock is this process's.

    :param what: the step that asks, for the error.
    """
    lock.demand(house.store, what)
    return house


def map_of(house: Tree) -> clustermap.Map:
    """The cluster map.

    :raises Refused: there is none.
    """
    cmap = house.map()
    if cmap is None:
        raise Refused("worker", [Problem(str(house.map_path), "is not there", "write it")])
    return cmap


def members_of(house: Tree) -> dict[str, registry.Member]:
    """The registry."""
    return registry.of(bank.read(house.store, registry.RECORD))


def stamp(house: Tree, minion: str, phase: str) -> None:
    """A phase of a join is over now."""
    with house.changing(joins.RECORD) as rows:
        rows[minion] = joins.stamped(rows.get(minion, {}), phase, time.time())


def moved(house: Tree, minion: str, state: registry.State, phase: str = "") -> dict[str, Any]:
    """A member comes into a state, and nobody has to be told.

    :param phase: of a join, over with that.
    :returns: ``said`` and ``changes``, as a step of an orchestration wants them.
    :raises Refused: the lock is not this process's, or the member cannot come into that state.
    """
    done = registered(house, minion, state)
    noted(house, minion, state, phase)
    return done


def registered(house: Tree, minion: str, state: registry.State) -> dict[str, Any]:
    """The registry says it, and nothing else is done: what fails here has changed nothing."""
    lock.demand(house.store, state)
    with house.changing(registry.RECORD) as rows:
        found = registry.of(rows)
        before = registry.known(found, minion).state
        rows.update(registry.rows(registry.moved(found, minion, state, admission.now())))
    changes = {} if before == state else {minion: {"old": before, "new": state}}
    return {"said": f"{minion} is {state}", "changes": changes}


def noted(house: Tree, minion: str, state: registry.State, phase: str) -> None:
    """What follows of it in the other records."""
    if phase:
        stamp(house, minion, phase)
    if state == "gone":
        Ledger(house, minion).heard([minion])
