"""State: a table of nft holds the rules of its file."""

from __future__ import annotations

import re
import subprocess
from typing import Any

__virtualname__ = "nft_table"

__opts__: dict[str, Any]
__salt__: dict[str, Any]

ASK_SECONDS = 20

#: By this the file says which rules it holds, and the table which it was loaded with.
COMMENT = re.compile(r'^\s*comment "(saltworks [0-9a-f]+)"', re.M)


def __virtual__() -> str:
    return __virtualname__


def loaded(name: str, path: str, service: str) -> dict[str, Any]:
    """The table is there, with the rules of its file; else the unit that loads it reloads.

    The kernel is asked, not the unit: whoever empties the whole rule set leaves the unit
    as it was.

    :param name: the table with its family, such as ``inet saltworks_firewall``.
    :param path: its file, with a ``comment "saltworks <hex>"`` in the table.
    :param service: the unit whose reload loads the file in one step; it must run.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    try:
        with open(path, encoding="utf-8") as file:
            wanted = _comment(file.read())
    except FileNotFoundError:
        if __opts__["test"]:
            return mod_watch(name, path, service)
        return {**ret, "result": False, "comment": f"{path} is missing"}
    if not wanted:
        return {**ret, "result": False, "comment": f"{path}: the table has no comment"}
    found = _found(name)
    if found == wanted:
        return {**ret, "comment": f"{name} holds the rules of {path}"}
    ret["changes"] = {name: {"old": found or "none", "new": wanted}}
    if __opts__["test"]:
        return {**ret, "result": None, "comment": f"{path} would be loaded"}
    __salt__["service.reload"](service)
    if _found(name) != wanted:
        text = f"{name} does not hold the rules of {path}; see journalctl -u {service}"
        return {**ret, "changes": {}, "result": False, "comment": text}
    return {**ret, "comment": f"{path} is loaded"}


def mod_watch(name: str, path: str, service: str, **kwargs: Any) -> dict[str, Any]:
    """A watched file changes: in a test run that means rules loaded later."""
    if not __opts__["test"]:
        return loaded(name, path, service)
    changes = {name: {"new": "would be loaded"}}
    return {"name": name, "changes": changes, "result": None, "comment": f"{path} would be loaded"}


def _comment(text: str) -> str:
    found = COMMENT.search(text)
    return found.group(1) if found else ""


def _found(name: str) -> str:
    # Without the table, or before the package is there in a test run, nothing is loaded.
    try:
        done = subprocess.run(
            ["nft", "list", "table", *name.split()],
            capture_output=True, text=True, timeout=ASK_SECONDS, check=False,
        )
    except FileNotFoundError:
        return ""
    return _comment(done.stdout)
