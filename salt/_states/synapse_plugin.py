"""State: a package for Synapse's modules is unpacked beside the releases."""

from __future__ import annotations

import os
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_plugin"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def unpacked(name: str, source: str, source_hash: str) -> dict[str, Any]:
    """The folder ``name`` holds a package; its name says of which content, so it never changes.

    :param source: path or ``salt://`` URL of a wheel, or of a single ``.py`` file.
    :param source_hash: ``sha256=<hex>`` of it.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if os.path.isdir(name):
        return {**ret, "comment": f"{source} is unpacked"}
    ret["changes"] = {name: {"old": None, "new": source}}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{source} would be unpacked"}
    try:
        __salt__["synapse_plugin.unpack"](name, source, source_hash)
    except CommandExecutionError as error:
        return {**ret, "changes": {}, "result": False, "comment": str(error)}
    return {**ret, "comment": f"{source} unpacked"}
