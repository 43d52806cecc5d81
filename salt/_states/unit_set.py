"""State: of the systemd units with a common prefix, only those named exist."""

from __future__ import annotations

import os
from typing import Any

__virtualname__ = "unit_set"

UNIT_DIR = "/etc/systemd/system"
#: Where instances of a template are named once they are enabled.
WANTED_DIR = f"{UNIT_DIR}/multi-user.target.wants"
KINDS = (".socket", ".service", ".timer")


def __virtual__() -> str:
    return __virtualname__


def only(name: str, units: list[str]) -> dict[str, Any]:
    """Stop, disable and delete every unit of the prefix ``name`` that is not in ``units``.

    :param name: prefix of unit names, such as ``saltworks-relay-`` or, of the enabled instances
        of a template and of it, ``synapse-worker@``.
    :param units: full names of those that may stay; they need not exist.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    # Sockets first, so that nothing starts their service again.
    extra = sorted(
        (unit for unit in _names(UNIT_DIR) | _names(WANTED_DIR)
         if unit.startswith(name) and unit.endswith(KINDS) and unit not in units),
        key=lambda unit: (not unit.endswith(".socket"), unit),
    )
    if not extra:
        return {**ret, "comment": "no other unit"}
    ret["changes"] = {unit: "removed" for unit in extra}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": f"{', '.join(extra)} would be removed"}
    for unit in extra:
        if not unit.endswith("@.service"):
            __salt__["service.stop"](unit)  # type: ignore[name-defined]
            __salt__["service.disable"](unit)  # type: ignore[name-defined]
        path = os.path.join(UNIT_DIR, unit)
        if os.path.lexists(path):
            os.remove(path)
    __salt__["service.systemctl_reload"]()  # type: ignore[name-defined]
    return {**ret, "comment": f"{', '.join(extra)} removed"}


def _names(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()
