"""The window of an upgrade, as states."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_upgrade"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def decided(
    name: str, directory: str, mark: str, choice: str | None = None, limit: float = 60
) -> dict[str, Any]:
    """It is decided whether the background updates run offline or online.

    :param name: path of homeserver.yaml.
    :param directory: the backup's folder, with the rehearsal's time.
    :param mark: name of the live copy, for SQLite.
    :param choice: the operator's word, ``upgrade.background_updates`` of the cluster map.
    :param limit: longest offline migration that is taken without asking, in seconds.
    """
    if __opts__["test"]:
        words = choice or f"offline, if the rehearsal takes at most {limit:g} s"
        return _ret(name, None, f"background updates would run {words}")
    try:
        plan = __salt__["synapse_upgrade.way"](name, directory, mark, choice, limit)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if plan["way"] == "needs-choice":
        words = f"{plan['words']} Write upgrade.background_updates into the cluster map."
        return _ret(name, False, words)
    return _ret(name, True, plan["words"])


def receipts_counted(name: str, service: str) -> dict[str, Any]:
    """The new release counts every receipt at its first start; see the execution module.

    :param name: path of homeserver.yaml.
    :param service: the new Synapse's unit: once that runs, it has counted.
    """
    if __opts__["test"]:
        return _ret(name, None, "receipts would be counted anew at the first start")
    try:
        if __salt__["service.status"](service):
            return _ret(name, True, f"{service} runs and has counted")
        place = __salt__["synapse_upgrade.receipts_counted_from"](name)
        if not place:
            return _ret(name, True, "all receipts will be counted")
        __salt__["synapse_upgrade.count_all_receipts"](name)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"receipts counted from": {"old": place, "new": 0}}
    return {**_ret(name, True, "all receipts will be counted"), "changes": changes}


def to_device_counted(name: str, service: str) -> dict[str, Any]:
    """The new release counts to-device messages on, beyond all numbers given before.

    :param name: path of homeserver.yaml.
    :param service: the new Synapse's unit: once that runs, it counts by itself.
    """
    if __opts__["test"]:
        return _ret(name, None, "to-device messages would be counted on")
    try:
        if __salt__["service.status"](service):
            return _ret(name, True, f"{service} runs and counts")
        place = __salt__["synapse_upgrade.to_device_place"](name)
        if place is None:
            return _ret(name, True, "the database knows where to count on")
        __salt__["synapse_upgrade.set_to_device_place"](name, place)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"to-device messages counted from": {"old": "what is left", "new": place}}
    return {**_ret(name, True, f"they will be counted from {place}"), "changes": changes}


def nothing_lost(name: str, directory: str, mark: str) -> dict[str, Any]:
    """The content is what it was at the mark, but for what the migration changes on purpose.

    :param name: path of homeserver.yaml.
    :param directory: the backup's folder.
    :param mark: its name.
    """
    if __opts__["test"]:
        return _ret(name, None, "the content would be compared with what it was before")
    try:
        found = __salt__["synapse_upgrade.lost"](name, directory, mark)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if found:
        return _ret(name, False, f"not what it was before: {'; '.join(found)}")
    return _ret(name, True, "every measure is what it was before")


def _ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    return {"name": name, "result": result, "comment": comment, "changes": {}}
