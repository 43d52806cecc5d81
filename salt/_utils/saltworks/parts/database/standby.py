"""From a cluster of the same major version: a standby, until the window turns both round.

From then on the old one follows, until it is given up (``salt/_modules/saltworks_pgstandby.py``).
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
    ends,
    found,
    parted,
    source_roles,
    stand_down,
    upstream,
)

#: On the primary, for its one standby.
SLOT = "saltworks_standby"


def machine(cmap: Map, placement: Placement, secret: Secrets, comes: str) -> dict[str, Any]:
    """What the new machine's cluster is given until the old one is given up.

    :param comes: the legacy machine's network, for pg_hba.conf.
    """
    # In the window the copy is the switch's: what began it had a whole one.
    copies = not placement.database and not placement.moving
    return {
        "admits": [{"database": "replication", "user": REPLICATION, "address": comes}],
        "upstream": upstream(cmap) if copies else {},
        "slots": [SLOT],
    }


def source(cmap: Map, secret: Secrets) -> dict[str, Any]:
    """What the cluster as found is given while it is to be copied."""
    return {
        "roles": source_roles(cmap, secret),
        # The relay is where the new machine comes from.
        "admits": [{"database": "replication", "user": REPLICATION, "address": "127.0.0.1/32"}],
        "slots": [SLOT],
    }


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps()


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    (old, old_cluster), (new, new_cluster) = ends(cmap, placement)
    database = {"database": cmap["synapse"]["database"]["name"]}
    at_old, at_new = {"cluster": old_cluster}, {"cluster": new_cluster}
    # The promoted one keeps WAL for the other on the way there only: on the way back the
    # new machine's copy is given up.
    there = {"followed": not placement.database}
    return Steps(
        before=(
            Ask(old, "pgstandby.ready", {**at_old, "standby": False}),
            Ask(new, "pgstandby.ready", {**at_new, "standby": True}),
        ),
        act=(
            Ask(old, "pgstandby.fence", {**at_old, **database}),
            Ask(
                new,
                "pgstandby.promote",
                {**at_new, **database, **there},
                given={"fenced": "pgstandby.fence"},
            ),
        ),
        # The new one need not answer: nobody writes there but a Synapse that was stopped.
        undo=(Ask(old, "pgstandby.unfence", at_old),),
        tried=stand_down(placement, "pgstandby.stand_down", new, at_new),
    )


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`; until the old one is given up."""
    at_old = {"cluster": found(cmap)}
    return {
        "old": Ask(cmap["legacy"]["minion"], "pgstandby.status", at_old),
        "old content": Ask(cmap["legacy"]["minion"], "pgcontent.measured", at_old),
        "new content": Ask(placement.database, "pgcontent.measured", {"cluster": CLUSTER}),
    }


def checks(cmap: Map, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`; until the old one is given up."""
    machine, row = cmap["legacy"]["minion"], told["old"]
    if "error" in row:
        old = Check("old database", False, f"{machine}: {row['error']}")
    elif (apart := parted(machine, row)) is not None:
        old = apart
    else:
        follows = bool(
            row["fenced"] and row.get("recovery") and row.get("receiving") == "streaming"
        )
        good = "follows as a standby, takes no write"
        words = good if follows else f"does not follow: {dict(row)}"
        old = Check("old database", follows, f"{machine} {words}")
    return [old, content(told["old content"], told["new content"])]

