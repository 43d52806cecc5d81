"""State: the media are in their store."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "media_store"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def copied(name: str, user: str) -> dict[str, Any]:
    """Every file of the media folder ``name`` was sent; see ``media_store.copy``.

    :param user: Synapse's account.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{name} would be copied to the store"}
    try:
        done = __salt__["media_store.copy"](user)
    except CommandExecutionError as problem:
        return {**ret, "result": False, "comment": str(problem)}
    if done["copied"]:
        ret["changes"] = {name: {"copied": done["copied"], "bytes": done["bytes"]}}
    words = f"{done['files']} files, {done['copied']} of them sent now, {done['seconds']} s"
    left = done.get("unreadable", [])
    more = f"; not readable now, and asked for again before the window: {left}" if left else ""
    return {**ret, "comment": words + more}
