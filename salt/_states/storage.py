"""States: the store's program is here, the store answers, and its files are hashed."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "storage"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def installed(
    name: str, find_links: list[str] | None = None, no_index: bool = False
) -> dict[str, Any]:
    """The rclone that the requirements file ``name`` locks is on this machine.

    :param find_links: folders or URLs with packages, as pip takes them.
    :param no_index: use nothing but ``find_links``.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    try:
        found = __salt__["storage.described"](name)
        if found["present"]:
            return {**ret, "comment": f"{found['path']} is there"}
        changes = {"rclone": {"old": None, "new": found["version"]}}
        if __opts__["test"]:
            words = f"rclone {found['version']} would be installed"
            return {**ret, "result": None, "changes": changes, "comment": words}
        __salt__["storage.install"](name, find_links=find_links, no_index=no_index)
    except CommandExecutionError as problem:
        return {**ret, "result": False, "comment": str(problem)}
    return {**ret, "changes": changes, "comment": f"{found['path']} installed"}


def serving(name: str, bucket: str, timeout: float = 30) -> dict[str, Any]:
    """The store at the URL ``name`` answers; see ``storage.healthy``."""
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if __opts__["test"]:
        return {**ret, "comment": f"{name} would be asked for its buckets"}
    try:
        done = __salt__["storage.healthy"](name, bucket, timeout)
    except (CommandExecutionError, OSError, IndexError) as problem:
        return {**ret, "result": False, "comment": str(problem)}
    return {**ret, "comment": f"it has the bucket {bucket} ({done['seconds']} s)"}


def hashed(name: str, endpoint: str, target: str) -> dict[str, Any]:
    """The hashes of all files of the bucket folder ``name`` are known; see ``storage.hash``."""
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"the files of {name} would be hashed"}
    try:
        done = __salt__["storage.hash"](name, endpoint, target)
    except (CommandExecutionError, OSError) as problem:
        return {**ret, "result": False, "comment": str(problem)}
    words = f"{done['files']} files, {done['read']} of them read now, {done['seconds']} s"
    return {**ret, "comment": words}
