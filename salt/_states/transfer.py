"""State: a tree of another machine is here."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "transfer"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def pulled(
    name: str, source: str, host: str, key: str, user: str, timeout: float = 86400
) -> dict[str, Any]:
    """The folder ``name`` is a copy of a tree on another machine; see ``transfer.pull``.

    :param source: the tree there, for messages.
    :param host: address of the other machine.
    :param key: path of the private key here.
    :param user: who owns the copy.
    :param timeout: bound in seconds.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if __opts__["test"]:
        # An orchestration in test mode shows a machine's states only if something would change.
        ret["changes"] = {name: {"copied": "what is new", "deleted": "what is gone"}}
        return {**ret, "result": None, "comment": f"{source} of {host} would be copied"}
    try:
        done = __salt__["transfer.pull"](source, name, host, key, user, timeout)
    except CommandExecutionError as problem:
        return {**ret, "result": False, "comment": str(problem)}
    if done["files"] or done["deleted"]:
        ret["changes"] = {name: {"copied": done["files"], "deleted": done["deleted"]}}
    return {**ret, "comment": f"a copy of {source} ({done['files']} files, {done['seconds']} s)"}
