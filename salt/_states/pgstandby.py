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


def published(name: str, role: str, cluster: Any) -> dict[str, Any]:
    """A role may read and follow all tables of a database, see ``pgpublish.publish``.

    :param name: the database.
    :param role: it has to be there.
    :param cluster: see ``pgcluster.locate``.
    """
    return _done(
        name,
        lambda: __salt__["pgpublish.publish"](cluster, name, role, __opts__["test"]),
        "published",
    )


def unpublished(name: str, role: str, cluster: Any) -> dict[str, Any]:
    """Nobody may follow a database by us, and its tables are as they were.

    :param name: the database.
    :param role: our role for that; it need not be there.
    :param cluster: see ``pgcluster.locate``.
    """
    return _done(
        name,
        lambda: __salt__["pgpublish.unpublish"](cluster, name, role, __opts__["test"]),
        "withdrawn",
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


def bounded(name: str, wanted: bool, cluster: Any) -> dict[str, Any]:
    """WAL that is held for a copy does not fill the disk, see ``pgserver.bound``.

    :param name: for the report.
    :param wanted: else the bound is as it was before.
    :param cluster: see ``pgcluster.locate``.
    """
    return _done(
        name,
        lambda: __salt__["pgserver.bound"](cluster, wanted, __opts__["test"]),
        "bounded" if wanted else "as before",
    )


def copied(name: str, upstream: Mapping[str, Any], cluster: Any) -> dict[str, Any]:
    """The cluster is a standby that streams from another machine's.

    :param name: for the report.
    :param upstream: see ``pgcopy.copy``; none: nothing is to be copied (yet).
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
        made = __salt__["pgcopy.copy"](cluster, upstream)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"copy": {"old": "", "new": f"of {host}, streaming"}} if made else {}
    return _ret(name, True, f"streams from {host}", changes)


def replicated(
    name: str,
    owner: str,
    role: str,
    upstream: Mapping[str, Any],
    cluster: Any,
    owner_password_pillar: str = "postgres:provides:password",
    role_password_pillar: str = "postgres:replication:password",
) -> dict[str, Any]:
    """The database has all rows of another machine's, and gets each new one.

    :param name: the database.
    :param owner: the role that owns it.
    :param role: the role by which clusters follow each other.
    :param upstream: see ``pgsubscribe.copy``; none: nothing is to be copied (yet).
    :param cluster: see ``pgcluster.locate``.
    :param owner_password_pillar: key of the pillar with the owner's password.
    :param role_password_pillar: the same for ``role``.
    """
    if not upstream:
        return _ret(name, None if __opts__["test"] else True, "nothing is to be copied by now")
    host = upstream["host"]
    if __opts__["test"]:
        return _ret(name, None, f"{name} would be copied from {host}, live, if it is not")
    owns, follows = (
        {"role": who, "password": __salt__["pillar.get"](key, None, unmask=True)}
        for who, key in ((owner, owner_password_pillar), (role, role_password_pillar))
    )
    try:
        made = __salt__["pgsubscribe.copy"](cluster, name, owns, follows, upstream)
    except CommandExecutionError as problem:
        return _ret(name, False, str(problem))
    changes = {"copy": {"old": "", "new": f"of {host}, row by row"}} if made else {}
    return _ret(name, True, f"gets what is written on {host}", changes)


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
        name, lambda: __salt__["pgserver.provide"](cluster, name, owner, password), "made"
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


#: How a cluster that was left comes to follow, by how it stands (``pgserver.stands``): functions
#: of ``pgstandby`` or ``pglogical`` and, of this module, ``measured``.
TO_FOLLOW: Mapping[str, tuple[str, ...]] = {
    "fenced": ("awake", "measured", "follow"),
    "follower": ("awake", "follow"),
    "undone": ("stand_down", "awake", "follow"),
    "promoted": ("stand_down", "copy_again", "follow"),
    "loose": ("stand_down", "copy_again", "follow"),
    "parted": ("copy_again", "follow"),
    # Refuses, and says why.
    "open": ("awake",),
}


def following(
    name: str, upstream: Mapping[str, Any], database: str, cluster: Any, logical: bool = False
) -> dict[str, Any]:
    """A fenced cluster follows the one that took over; its content is measured first.

    One whose promotion did not count is fenced before anything else, and copied again.

    :param name: for the report.
    :param upstream: see ``pgcopy.copy``; none: it was never switched.
    :param database: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    :param logical: its rows follow, and not its files.
    """
    if not upstream:
        return _ret(name, None if __opts__["test"] else True, "nothing is to be followed by now")
    host = upstream["host"]
    way, where = ("pglogical", (cluster, database)) if logical else ("pgstandby", (cluster,))
    changes: dict[str, Any] = {}
    try:
        row = __salt__[f"{way}.status"](*where)
        steps = TO_FOLLOW[row["stands"]]
        if __opts__["test"]:
            follows = row["stands"] == "follower" and row.get("receiving") == "streaming"
            anew = ", of which it would be a copy again" if "copy_again" in steps else ""
            words = f"follows {host}" if follows else f"would follow {host}{anew}"
            return _ret(name, True if follows else None, words)
        for step in steps:
            if step == "measured":
                before = measured(database, cluster)
                if not before["result"]:
                    return _ret(name, False, before["comment"])
                changes.update(before["changes"])
                continue
            if step == "follow" and __salt__["pgadmit.slots"](cluster, []):
                changes["follows"] = {"old": "", "new": host}
            given = () if step == "awake" else (upstream,)
            done = __salt__[f"{way}.{step}"](*where, *given)
            if done and step == "stand_down":
                changes["fenced"] = {"old": "promoted", "new": done}
            elif done:
                changes["follows"] = {"old": "", "new": host}
    except CommandExecutionError as problem:
        return {**_ret(name, False, str(problem)), "changes": changes}
    return _ret(name, True, f"follows {host}, takes no other write", changes)


def retired(name: str, cluster: Any) -> dict[str, Any]:
    """A cluster of Debian's does not run, and does not start; its data stays.

    :param name: for the report.
    :param cluster: see ``pgcluster.locate``; one that is not there is retired.
    """
    return _done(
        name, lambda: __salt__["pgserver.retire"](cluster, __opts__["test"]), "retired"
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
