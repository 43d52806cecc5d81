"""PostgreSQL of a machine as a member of Patroni's cluster, as states."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "patroni"

__salt__: dict[str, Any]
__opts__: dict[str, Any]

SETTLED = {
    "attach": "Patroni takes over the server that is here",
    "clear": "Patroni makes a copy in place of the empty cluster",
    "copy": "Patroni makes a copy",
}

#: In a test run, as the configuration says where etcd is.
UNKNOWN = "Patroni is not configured here yet, so what it would find can not be told"


def __virtual__() -> str:
    return __virtualname__


def settled(name: str, cluster: Any, adopts: bool, config: str) -> dict[str, Any]:
    """Patroni may take over what is here, see ``patroni_machine.settle``.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``.
    :param adopts: the cluster is made of this machine's server, if there is none yet.
    :param config: Patroni's own configuration file.
    """

    def act() -> tuple[dict[str, Any], str]:
        if __opts__["test"] and not os.path.exists(config):
            return {name: {"old": "", "new": "Patroni's"}}, UNKNOWN
        done = __salt__["patroni_machine.settle"](cluster, adopts, config, __opts__["test"])
        changes = {row: {"old": "", "new": done["what"]} for row in done["changed"]}
        return changes, f"{SETTLED[done['what']]}: {done['why']}"

    return _ret(name, act)


def attuned(
    name: str,
    cluster: Any,
    durability: str,
    maximum_lag: int,
    slots: Sequence[str],
    adopts: bool,
    config: str,
) -> dict[str, Any]:
    """Patroni's cluster is set in etcd as it should be, see ``patroni_machine.attune``.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``.
    :param durability: ``async``, ``sync`` or ``sync-strict``.
    :param maximum_lag: bytes that a standby may be behind and yet be promoted.
    :param slots: replication slots that are not Patroni's, and stay.
    :param adopts: the cluster is made of this machine's server, if there is none yet.
    :param config: Patroni's own configuration file.
    """

    def act() -> tuple[dict[str, Any], str]:
        if __opts__["test"] and not os.path.exists(config):
            return {name: {"old": "", "new": durability}}, UNKNOWN
        changes = __salt__["patroni_machine.attune"](
            cluster, durability, maximum_lag, slots, adopts, config, __opts__["test"]
        )
        return changes, f"{durability}, as set in etcd"

    return _ret(name, act)


def roles(
    name: str,
    cluster: Any,
    replication_pillar: str = "patroni:replication",
    rewind_pillar: str = "patroni:rewind",
    reads_by: str = "",
) -> dict[str, Any]:
    """Roles by which members copy and rewind each other, see ``patroni_machine.roles``.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``.
    :param replication_pillar: key of the pillar with ``role`` and ``password``.
    :param rewind_pillar: the same.
    :param reads_by: a role that sees everybody's statistics.
    """
    copies, rewinds = (
        __salt__["pillar.get"](key, {}, unmask=True) for key in (replication_pillar, rewind_pillar)
    )
    given: Mapping[str, Mapping[str, Any]] = {
        copies["role"]: {"password": copies["password"], "replication": True},
        rewinds["role"]: {"password": rewinds["password"], "made": True},
    }

    def act() -> tuple[dict[str, Any], str]:
        rows = __salt__["patroni_machine.roles"](
            cluster, given, rewinds["role"], reads_by, __opts__["test"]
        )
        return {row: {"old": "", "new": "given"} for row in rows}, "as they should be"

    return _ret(name, act)


def streaming(name: str, seconds: float, config: str) -> dict[str, Any]:
    """This member leads, or is a standby that streams; its first copy takes its time.

    :param name: for the report.
    :param seconds: the bound.
    :param config: Patroni's own configuration file.
    """

    def act() -> tuple[dict[str, Any], str]:
        if __opts__["test"]:
            return {}, "not asked in a test run"
        done = __salt__["patroni.streaming"](seconds, config)
        return {}, f"{done['role']}, {done['lag']} bytes behind, after {done['seconds']} s"

    return _ret(name, act)


def retired(name: str, cluster: Any, config: str) -> dict[str, Any]:
    """Patroni no longer has this machine's server, see ``patroni_machine.retire``.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``.
    :param config: Patroni's own configuration file.
    """

    def act() -> tuple[dict[str, Any], str]:
        rows = __salt__["patroni_machine.retire"](cluster, config, __opts__["test"])
        return {row: {"old": "Patroni's", "new": ""} for row in rows}, "not Patroni's"

    return _ret(name, act)


def _ret(name: str, act: Callable[[], tuple[dict[str, Any], str]]) -> dict[str, Any]:
    try:
        changes, comment = act()
    except CommandExecutionError as problem:
        return {"name": name, "result": False, "comment": str(problem), "changes": {}}
    result = None if changes and __opts__["test"] else True
    return {"name": name, "result": result, "comment": comment, "changes": changes}
