"""Steps of the database cluster's making, and of its machines' coming and going.

The master itself takes them. Each is done again without harm: an orchestration that died is run
again from its beginning.
"""

from __future__ import annotations

from typing import Any

from saltworks import steps

__virtualname__ = "database"


def __virtual__() -> str:
    return __virtualname__


def watched(name: str) -> dict[str, Any]:
    """All machines of etcd serve and agree on a leader.

    :param name: for the report only.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, "it would be waited until etcd has a leader")
    return steps.did(name, *steps.run(__salt__, "database.watched"))  # type: ignore[name-defined]


def founded(name: str) -> dict[str, Any]:
    """The machine that M3 has made is the cluster's first member."""
    return _step(name, "database.found", "would be the first member of the cluster")


def led(name: str) -> dict[str, Any]:
    """Patroni has a primary.

    :param name: the first machine, for the report.
    """
    return _step(name, "database.led", "it would be waited until there is a primary")


def admitted(name: str) -> dict[str, Any]:
    """The cluster's other machines let a new one copy them."""
    return _step(name, "database.admit", "the others would let it copy them")


def streaming(name: str) -> dict[str, Any]:
    """A standby is a whole copy and gets what is written as it is written."""
    return _step(name, "database.stream", "it would be waited until it streams")


def registered(name: str) -> dict[str, Any]:
    """The registry says that it may be read from; Synapse's machines know it."""
    return _step(name, "database.register", "would be ready in the registry")


def handed_over(name: str) -> dict[str, Any]:
    """It is not the primary."""
    return _step(name, "database.hand_over", "another would be the primary")


def draining(name: str) -> dict[str, Any]:
    """It is read from no more; Synapse's machines know it."""
    return _step(name, "database.begin_drain", "would be read from no more")


def retired(name: str) -> dict[str, Any]:
    """Neither PostgreSQL nor Patroni runs there any more."""
    return _step(name, "database.retire", "its PostgreSQL would be stopped")


def lost(name: str) -> dict[str, Any]:
    """The registry says that a machine is gone that does not answer."""
    return _step(name, "database.lose", "would be gone in the registry")


def shut_out(name: str) -> dict[str, Any]:
    """Neither etcd nor the cluster's other machines let one in that is gone."""
    return _step(name, "database.shut_out", "nobody of the cluster would let it in")


def alone(name: str) -> dict[str, Any]:
    """The machine is the cluster's last, and the primary."""
    return _step(name, "database.alone", "it would be refused unless it is the last machine")


def dissolved(name: str) -> dict[str, Any]:
    """The plan has one database, and no cluster."""
    return _step(name, "database.dissolve", "would be the one database")


def _step(name: str, function: str, words: str) -> dict[str, Any]:
    return steps.taken(__opts__, __salt__, name, function, words)  # type: ignore[name-defined]
