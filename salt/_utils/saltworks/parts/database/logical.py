"""From a cluster of an older major version: logical replication, turned round in the window.

Rows are copied, not files, so the new machine's cluster is one of its own with an empty database at
first. From the window on the old one subscribes to the new one, closed to everybody else, until it
is given up (``saltworks_pgpublish.py``, ``saltworks_pglogical.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...clustermap import Map
from ...meeting import Check
from ...plan import Placement, Secrets
from ..model import Ask, Steps
from .common import (
    CLUSTER,
    REPLICATION,
    content,
    database,
    ends,
    found,
    parted,
    source_roles,
    stand_down,
    upstream,
)

#: On the old cluster for the new one, and after the switch the other way round.
SLOT = "saltworks_there"
BACK_SLOT = "saltworks_back"


def machine(cmap: Map, placement: Placement, secret: Secrets, comes: str) -> dict[str, Any]:
    """What the new machine's cluster is given until the old one is given up.

    :param comes: the legacy machine's network, for pg_hba.conf.
    """
    name, owner = database(cmap)
    # In the window the copy is the switch's: what began it had a whole one.
    copies = not placement.database and not placement.moving
    return {
        # Logical replication names a database, not the word `replication`.
        "admits": [{"database": name, "user": REPLICATION, "address": comes}],
        "upstream": upstream(cmap) if copies else {},
        "provides": {"owner": owner, "password": secret("database_password")} if copies else {},
        "slots": [BACK_SLOT],
    }


def source(cmap: Map, secret: Secrets) -> dict[str, Any]:
    """What the cluster as found is given while it is to be copied."""
    name = database(cmap)[0]
    return {
        "roles": source_roles(cmap, secret),
        # The relay is where the new machine comes from.
        "admits": [{"database": name, "user": REPLICATION, "address": "127.0.0.1/32"}],
        "slots": [SLOT],
    }


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`: the one restart that ``wal_level`` takes."""
    legacy, at = cmap["legacy"]["minion"], {"cluster": found(cmap)}
    return Steps(
        needed=Ask(legacy, "pgpublish.wants_restart", at),
        before=(Ask(legacy, "pgpublish.checkpoint", at),),
        act=(Ask(legacy, "pgpublish.enable", at),),
        undo=(Ask(legacy, "pgpublish.disable", at),),
    )


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    (old, old_cluster), (new, new_cluster) = ends(cmap, placement)
    name = {"database": database(cmap)[0]}
    at_old, at_new = {"cluster": old_cluster, **name}, {"cluster": new_cluster, **name}
    # What is written on the new one is kept for the other on the way there only.
    there = {"followed": not placement.database}
    return Steps(
        before=(
            Ask(old, "pglogical.ready_to_leave", at_old),
            Ask(new, "pglogical.ready_to_take", at_new),
        ),
        act=(
            Ask(old, "pglogical.fence", at_old),
            Ask(
                new,
                "pglogical.take_over",
                {**at_new, **there},
                given={"fenced": "pglogical.fence"},
            ),
        ),
        # The new one need not answer: nobody writes there but a Synapse that was stopped.
        undo=(Ask(old, "pglogical.unfence", at_old),),
        tried=stand_down(placement, "pglogical.stand_down", new, at_new),
    )


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`; until the old one is given up."""
    old, at_old, at_new = cmap["legacy"]["minion"], {"cluster": found(cmap)}, {"cluster": CLUSTER}
    name = {"database": database(cmap)[0]}
    return {
        "old": Ask(old, "pglogical.status", {**at_old, **name}),
        "followed": Ask(placement.database, "pglogical.followed", {**at_new, **name}),
        "old content": Ask(old, "pgcontent.measured", at_old),
        "new content": Ask(placement.database, "pgcontent.measured", at_new),
    }


def checks(cmap: Map, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`; until the old one is given up."""
    machine, row, other = cmap["legacy"]["minion"], told["old"], told["followed"]
    if (apart := parted(machine, row)) is not None:
        old = apart
    elif "error" in row or "error" in other:
        old = Check("old database", False, f"{machine}: {row.get('error') or other['error']}")
    else:
        follows = bool(row["fenced"] and other["followed"])
        good = "follows by logical replication, lets in nobody else"
        words = good if follows else f"does not follow: {dict(row)}; {other['why']}"
        old = Check("old database", follows, f"{machine} {words}")
    return [old, content(told["old content"], told["new content"])]
