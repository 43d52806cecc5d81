"""Synapse's database at the schema of a release, as a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_db"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def migrated(
    name: str,
    release: str,
    user: str | None = None,
    online: bool = False,
    resume: bool = False,
    timeout: float = 3600,
) -> dict[str, Any]:
    """The schema is the release's, and no background update waits (unless ``online``).

    :param name: path of homeserver.yaml.
    :param release: folder of the release.
    :param user: account to run as.
    :param online: leave the background updates to the running server.
    :param resume: see ``synapse_db.migrate``.
    :param timeout: seconds.
    """
    try:
        target = __salt__["synapse_db.target_schema"](release)
        now = __salt__["synapse_db.schema"](config=name, user=user)
        if now and now["version"] == target and (online or not now["pending"]):
            return _ret(name, True, f"the schema is {target}")
        if __opts__["test"]:
            old = now["version"] if now else "empty"
            return _ret(name, None, f"the schema would go from {old} to {target}")
        done = __salt__["synapse_db.migrate"](name, release, user, online, timeout, resume)
    except CommandExecutionError as problem:
        if __opts__["test"]:
            # Release and configuration are put there by steps that a test only announces.
            return _ret(name, None, f"the schema would become that of {release}")
        return _ret(name, False, str(problem))
    old = done["before"]["version"] if done["before"] else 0
    changes = {"schema": {"old": old, "new": done["after"]["version"]}}
    return _ret(name, True, f"migrated in {done['seconds']:g} s", changes)


def warmed(
    name: str, release: str, user: str | None = None, online: bool = False
) -> dict[str, Any]:
    """The migration's program is loaded, for a ``migrated`` later in this very run.

    :param name: path of homeserver.yaml.
    :param release: folder of the release.
    :param user: account to run as.
    :param online: as in ``migrated``.
    """
    if not __opts__["test"]:
        try:
            __salt__["synapse_db.warm"](name, release, user, online)
        except CommandExecutionError as problem:
            return _ret(name, False, str(problem))
    return _ret(name, None if __opts__["test"] else True, "the migration's program is loading")


def _ret(
    name: str, result: bool | None, comment: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"name": name, "result": result, "comment": comment, "changes": dict(changes or {})}
