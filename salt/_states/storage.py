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
    try:
        found = __salt__["storage.described"](name)
        if found["present"]:
            return _ret(name, True, f"{found['path']} is there")
        changes = {"rclone": {"old": None, "new": found["version"]}}
        if __opts__["test"]:
            words = f"rclone {found['version']} would be installed"
            return {**_ret(name, None, words), "changes": changes}
        __salt__["storage.install"](name, find_links=find_links, no_index=no_index)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    return {**_ret(name, True, f"{found['path']} installed"), "changes": changes}


def serving(name: str, bucket: str, timeout: float = 30) -> dict[str, Any]:
    """The store at the URL ``name`` answers; see ``storage.healthy``."""
    if __opts__["test"]:
        return _ret(name, True, f"{name} would be asked for its buckets")
    words = f"it has the bucket {bucket} ({{seconds}} s)"
    return _done(words, "storage.healthy", name, bucket, timeout)


def hashed(name: str, endpoint: str, target: str) -> dict[str, Any]:
    """The hashes of all files of the bucket folder ``name`` are known; see ``storage.hash``."""
    if __opts__["test"]:
        return _ret(name, None, f"the files of {name} would be hashed")
    words = "{files} files, {read} of them read now, {seconds} s"
    return _done(words, "storage.hash", name, endpoint, target)


def _done(words: str, function: str, name: str, *args: Any) -> dict[str, Any]:
    """Call a function on ``name``, which changes nothing that counts.

    :param words: the comment, with names of its answer's values.
    """
    try:
        answer = __salt__[function](name, *args)
    except (CommandExecutionError, OSError, IndexError) as problem:
        return _ret(name, False, str(problem))
    return _ret(name, True, words.format(**answer))


def _ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    return {"name": name, "result": result, "changes": {}, "comment": comment}
