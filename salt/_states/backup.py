"""Steps of a restore of the database that the master itself takes; see ``orch.database``."""

from __future__ import annotations

from typing import Any

from saltworks import steps

__virtualname__ = "backup"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def covered(name: str, machine: str = "") -> dict[str, Any]:
    """The time ``name`` can be restored to. It only reads, and so is part of the plan.

    :param machine: where, if not on the primary's.
    """
    return _did(name, *steps.run(__salt__, "backup.covered", target=name, machine=machine))


def restored(name: str, machine: str = "") -> dict[str, Any]:
    """The database is as it was at the time ``name``.

    :param machine: where, if not on the primary's.
    """
    if __opts__["test"]:
        return steps.ret(name, None, f"the database would be put back to {name}")
    return _did(name, *steps.run(__salt__, "backup.restore", target=name, machine=machine))


def _did(name: str, answer: Any, failed: bool) -> dict[str, Any]:
    if failed:
        return steps.ret(name, False, str(answer))
    return {**steps.ret(name, True, answer["said"]), "changes": answer["changes"]}
