"""PostgreSQL clusters that are copies of each other, as states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgstandby"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def admitted(name: str, roles_pillar: str, lines: Sequence[str], cluster: Any) -> dict[str, Any]:
    """Roles have their passwords, and pg_hba.conf has our lines.

    :param name: for the report.
    :param roles_pillar: key of the pillar with the roles, see ``pgadmit.admit``.
    :param lines: of pg_hba.conf.
    :param cluster: see ``pgcluster.locate``.
    """
    roles = __salt__["pillar.get"](roles_pillar, None, unmask=True)
    what = "missing" if __opts__["test"] else "admit"
    return _done(name, lambda: __salt__[f"pgadmit.{what}"](cluster, roles, lines), "admitted")


def withdrawn(name: str, cluster: Any) -> dict[str, Any]:
    """Nobody may copy this cluster by us.

    :param name: our role for that.
    :param cluster: see ``pgcluster.locate``.
    """
    return _done(
        name, lambda: __salt__["pgadmit.withdraw"](cluster, name, __opts__["test"]), "withdrawn"
    )


def slots(name: str, wanted: Sequence[str], cluster: Any) -> dict[str, Any]:
    """WAL is kept for nobody but those who need it.

    :param name: for the report.
    :param wanted: names of slots that may stay.
    :param cluster: see ``pgcluster.locate``.
    """
    return _done(
        name, lambda: __salt__["pgadmit.slots"](cluster, wanted, __opts__["test"]), "dropped"
    )


def copied(name: str, upstream: Mapping[str, Any], cluster: Any) -> dict[str, Any]:
    """The cluster is a standby that streams from another machine's.

    :param name: for the report.
    :param upstream: see ``pgstandby.copy``; none: nothing is to be copied (yet).
    :param cluster: see ``pgcluster.locate``.
    """
    if not upstream:
        return _ret(name, None if __opts__["test"] else True, "nothing is to be copied by now")
    host = upstream["host"]
    try:
        if __opts__["test"]:
            row = __salt__["pgstandby.status"](cluster)
            if row.get("receiving") == "streaming":
                return _ret(name, True, f"streams from {host}")
            return _ret(name, None, f"PostgreSQL would be copied from {host}, live")
        made = __salt__["pgstandby.copy"](cluster, upstream)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"copy": {"old": "", "new": f"of {host}, streaming"}} if made else {}
    return _ret(name, True, f"streams from {host}", changes)


def provided(name: str, owner: str, password_pillar: str, cluster: Any) -> dict[str, Any]:
    """The cluster runs as configured, and has a database and the role that owns it.

    :param name: the database.
    :param owner: the role.
    :param password_pillar: key of the pillar with its password.
    :param cluster: see ``pgcluster.locate``.
    """
    password = __salt__["pillar.get"](password_pillar, None, unmask=True)
    if __opts__["test"]:
        return _ret(name, None, f"the database {name} would be there, if it is not")
    return _done(
        name, lambda: __salt__["pgstandby.provide"](cluster, name, owner, password), "made"
    )


def measured(name: str, cluster: Any) -> dict[str, Any]:
    """Rows and checksums as of the last switch are recorded, see ``pgcontent.measure``.

    :param name: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    """
    try:
        if not __salt__["pgcontent.moment"](cluster) or __salt__["pgcontent.measured"](cluster):
            return _ret(name, True, "measured, or was never switched")
        if __opts__["test"]:
            return _ret(name, None, "rows and checksums of every table would be recorded")
        taken = __salt__["pgcontent.measure"](cluster, name)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    words = f"{len(taken['tables'])} tables, {taken['begun']} to {taken['ended']}"
    return _ret(name, True, words, {"measured": {"old": "", "new": words}})


def following(
    name: str, upstream: Mapping[str, Any], database: str, cluster: Any
) -> dict[str, Any]:
    """A fenced cluster follows the one that took over; its content is measured first.

    :param name: for the report.
    :param upstream: see ``pgstandby.copy``; none: it was never switched.
    :param database: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    """
    if not upstream:
        return _ret(name, None if __opts__["test"] else True, "nothing is to be followed by now")
    host = upstream["host"]
    try:
        row = __salt__["pgstandby.status"](cluster)
        follows = row.get("receiving") == "streaming"
        if __opts__["test"]:
            words = f"follows {host}" if follows else f"would follow {host}"
            return _ret(name, True if follows else None, words)
        started = __salt__["pgstandby.awake"](cluster)
        before = measured(database, cluster)
        if not before["result"]:
            return _ret(name, False, before["comment"])
        dropped = __salt__["pgadmit.slots"](cluster, [])
        changed = __salt__["pgstandby.follow"](cluster, upstream)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = dict(before["changes"])
    if started or changed or dropped:
        changes["follows"] = {"old": "", "new": host}
    return _ret(name, True, f"follows {host}, takes no write", changes)


def retired(name: str, cluster: Any) -> dict[str, Any]:
    """A cluster of Debian's does not run, and does not start; its data stays.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``; one that is not there is retired.
    """
    return _done(
        name, lambda: __salt__["pgstandby.retire"](cluster, __opts__["test"]), "retired"
    )


def _done(name: str, act: Any, words: str) -> dict[str, Any]:
    """What ``act`` answers are the things that it changed, or would."""
    try:
        things = act()
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    if not things:
        return _ret(name, True, "nothing to do")
    changes = {thing: {"old": "", "new": words} for thing in things}
    return _ret(name, None if __opts__["test"] else True, f"{words}: {', '.join(things)}", changes)


def _ret(
    name: str, result: bool | None, comment: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"name": name, "result": result, "comment": comment, "changes": dict(changes or {})}
