"""Synapse as its clients see it, as states."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "homeserver"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def answering(name: str, timeout: float = 60, version: str = "") -> dict[str, Any]:
    """Synapse answers at the base URL ``name``.

    :param timeout: bound in seconds.
    :param version: what it must say it is; any when empty.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": "Synapse would be waited for"}
    try:
        done = __salt__["homeserver.healthy"](name, timeout)
    except CommandExecutionError as problem:
        return {**ret, "result": False, "comment": str(problem)}
    if version and done["version"] != version:
        words = f"Synapse at {name} is {done['version']}, not {version}"
        return {**ret, "result": False, "comment": words}
    words = f"Synapse {done['version']} answers after {done['seconds']} s"
    return {**ret, "result": True, "comment": words}


def serving(name: str, timeout: float = 60) -> dict[str, Any]:
    """A process of Synapse answers ``/health`` at the base URL ``name``.

    :param timeout: bound in seconds.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}}
    if __opts__["test"]:
        return {**ret, "result": True, "comment": "not asked in a test run"}
    try:
        done = __salt__["homeserver.serves"](name, timeout)
    except CommandExecutionError as problem:
        return {**ret, "result": False, "comment": str(problem)}
    return {**ret, "result": True, "comment": f"answers after {done['seconds']} s"}
