"""State: the store knows this cluster, and its WAL arrives there."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgbackrest"

__salt__: dict[str, Any]
__opts__: dict[str, Any]

OFF = (
    "archive_mode is off in the running server: no WAL leaves it, and no backup can be taken. It "
    "takes a restart of PostgreSQL: its configuration has it on already"
)


def __virtual__() -> str:
    return __virtualname__


def stanza(name: str) -> dict[str, Any]:
    """The store has a place for the cluster ``name``, made by its primary.

    On a standby it is only looked for: the primary's machine makes it.
    """
    try:
        said = __salt__["pgbackrest.report"]()
        if "error" in said["server"]:
            return _ret(name, False, str(said["server"]["error"]))
        if said["server"]["archive_mode"] == "off":
            return _ret(name, False, OFF)
        if "error" not in said["store"]:
            return _ret(name, True, f"the store has {len(said['store']['backups'])} backups")
        if said["server"]["standby"]:
            return _ret(name, True, "a standby: the primary's machine makes it known to the store")
        changes = {"stanza": {"old": None, "new": name}}
        if __opts__["test"]:
            return {**_ret(name, None, "it would be made known to the store"), "changes": changes}
        __salt__["pgbackrest.create"]()
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    made = _ret(name, True, "made known to the store; its WAL arrives there")
    return {**made, "changes": changes}


def _ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    return {"name": name, "result": result, "changes": {}, "comment": comment}
