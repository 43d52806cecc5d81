"""Steps of a worker machine's join and leave that the master itself takes.

Each is done again without harm: an orchestration that died is run again from its beginning.
"""

from __future__ import annotations

from typing import Any

from saltworks import steps

__virtualname__ = "worker"


def __virtual__() -> str:
    return __virtualname__


def arrived(name: str) -> dict[str, Any]:
    """Every machine that has been let in is in service.

    :param name: the milestone, for the report only.
    """
    if not __opts__["test"]:  # type: ignore[name-defined]
        return steps.did(name, *steps.run(__salt__, "reconcile.arrive"))  # type: ignore[name-defined]
    # It only reads, and its answer is part of the plan.
    names, failed = steps.run(__salt__, "reconcile.coming")  # type: ignore[name-defined]
    if failed:
        return steps.ret(name, False, str(names))
    if not names:
        return steps.ret(name, True, "nobody is on the way in")
    return steps.ret(name, None, f"{', '.join(names)} would come into service")


def begun(name: str) -> dict[str, Any]:
    """The machine is a member that joins, and nobody else works on the cluster.

    :param name: its minion id.
    """
    return _step(name, "worker.begin", "would join")


def synced(name: str) -> dict[str, Any]:
    """The machine has the project's modules, and its address is in the registry."""
    return _step(name, "worker.sync", "would get the project's modules")


def converged(name: str) -> dict[str, Any]:
    """Its machine has what the plan says of it."""
    return _step(name, "worker.converge", "its machine would have a state run")


def healthy(name: str) -> dict[str, Any]:
    """Each of its processes answers several times in a row."""
    return _step(name, "worker.healthy", "it would be waited until its processes answer")


def caught_up(name: str) -> dict[str, Any]:
    """Its processes hear what the others say, and are as far in every stream as the main one."""
    return _step(name, "worker.caught_up", "it would be waited until it has caught up")


def registered(name: str) -> dict[str, Any]:
    """The registry says that it may be given requests; those concerned have been told."""
    return _step(name, "worker.register", "would be ready in the registry")


def fronted(name: str) -> dict[str, Any]:
    """The front has what the plan says of it, since that of the machine has changed."""
    return _step(name, "worker.front", "the front would have a state run")


def served(name: str) -> dict[str, Any]:
    """Each of its processes has answered a request that came through the front."""
    return _step(name, "worker.served", "it would be looked whether it answers through the front")


def joined(name: str) -> dict[str, Any]:
    """Its join is recorded as finished."""
    return _step(name, "worker.finish", "its join would be recorded")


def draining(name: str) -> dict[str, Any]:
    """The registry says that it is given no more requests; those concerned have been told."""
    return _step(name, "worker.begin_drain", "would be in nobody's routing")


def emptied(name: str) -> dict[str, Any]:
    """What it was asked before has been answered, long polls included."""
    return _step(name, "worker.emptied", "it would be waited until its long polls have ended")


def retired(name: str) -> dict[str, Any]:
    """Nothing of a worker runs on it any more."""
    return _step(name, "worker.retire", "its worker's processes would be stopped")


def gone(name: str) -> dict[str, Any]:
    """The registry says that it is gone; its key too, if the operator asked for that."""
    return _step(name, "worker.gone", "would be gone in the registry")


def lost(name: str) -> dict[str, Any]:
    """The registry says that a machine is gone that does not answer; those concerned know it."""
    return _step(name, "worker.lose", "would be gone in the registry")


def told(name: str) -> dict[str, Any]:
    """Others have been told, to its end, of what they were being told of.

    :param name: the member of whom, or a machine that could not be told before.
    """
    return _step(name, "worker.tell", "others would be told of it, behind the shut door")


def _step(name: str, function: str, words: str) -> dict[str, Any]:
    return steps.taken(__opts__, __salt__, name, function, words)  # type: ignore[name-defined]
