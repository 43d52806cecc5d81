"""M3, part database: PostgreSQL on a machine of its own.

The way there depends on what was found, which the cluster map says (:func:`route`): a cluster of
the same major version (``standby``), of an older one (``logical``), or SQLite (``sqlite``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ... import clustermap
from ...clustermap import Map
from ...errors import Problem
from ...meeting import Check
from ...plan import (
    AUTHORITY,
    AUTHORITY_FILE,
    Placement,
    Secrets,
    dsn_host,
    dsn_port,
    relay,
    worker_sources,
)
from ..model import Ask, Steps
from . import cluster, logical, sqlite, standby
from .common import (
    CLUSTER,
    NAME,
    PORT,
    ROLE,
    database,
    found,
    is_older,
    is_sqlite,
    is_there,
    network,
    replication,
    source,
)
from .precheck import problems, questions

__all__ = [
    "AFTER",
    "CONCERNS",
    "COPIES_BACK_ON",
    "COPIES_ON",
    "KEY_PAIRS",
    "MILESTONE",
    "NAME",
    "ROLE",
    "SECRETS",
    "checks",
    "configure",
    "hold",
    "idle",
    "legacy",
    "machine",
    "no_return",
    "problems",
    "proofs",
    "questions",
    "relays",
    "route",
    "steps",
    "synapse",
]

MILESTONE = "m3.database"
AFTER = ("m2",)
COPIES_ON = "database"
COPIES_BACK_ON = "legacy"
CONCERNS = ("legacy", "proxy", "synapse")
SECRETS: Mapping[str, int] = {"database_password": 40, "database_replication_password": 40}
KEY_PAIRS: tuple[str, ...] = ()


class Route(Protocol):
    """How a cluster comes from the legacy machine, and goes back as long as that is kept."""

    def machine(
        self, cmap: Map, placement: Placement, secret: Secrets, comes: str
    ) -> dict[str, Any]: ...

    def source(self, cmap: Map, secret: Secrets) -> dict[str, Any]: ...

    def hold(self, cmap: Map) -> Steps: ...

    def steps(self, cmap: Map, placement: Placement) -> Steps: ...

    def proofs(self, cmap: Map, placement: Placement) -> Mapping[str, Ask]: ...

    def checks(self, cmap: Map, told: Mapping[str, Any]) -> list[Check]: ...


def route(cmap: Map) -> Route:
    """The way that the cluster as found goes; not asked of SQLite."""
    return logical if is_older(cmap) else standby


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    return ""


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`."""
    name, user = database(cmap)
    args = {
        **cmap["synapse"]["database"].get("args", {}),
        "database": name,
        "user": user,
        "password": {"secret": "database_password"},
        "host": placement.database,
        "port": PORT,
        "sslmode": "verify-full",
        "sslrootcert": AUTHORITY_FILE,
    }
    config["database"] = {"name": "psycopg2", "args": args}


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if placement.clustered or minion != clustermap.the_machine(cmap, ROLE):
        return cluster.machine(cmap, placement, minion, secret)
    upcoming = placement.upcoming.get(NAME) == minion
    if not upcoming and placement.database != minion:
        return {"states": ["base", "postgres.absent"], "postgres": {"cluster": CLUSTER}}
    here = clustermap.address(cmap, minion)
    name, user = database(cmap)
    client = clustermap.the_machine(cmap, "synapse")
    sources = [clustermap.address(cmap, client)] if client else []
    admits = [
        {"database": name, "user": user, "address": network(each)}
        for each in [*sources, *worker_sources(cmap, placement)]
    ]
    row: dict[str, Any] = {
        "cluster": CLUSTER,
        "listen": [here],
        "port": PORT,
        "certificate": {
            "crt": secret(f"pki_{minion}"),
            "key": secret(f"pki_{minion}_key"),
            "authority": secret("pki_authority"),
        },
        "replication": replication(secret),
        # Patroni's name for it, so that it need not restart for that.
        "scope": cmap["name"],
        "upstream": {},
        "provides": {"owner": user, "password": secret("database_password")}
        if is_sqlite(cmap) and placement.database != minion
        else {},
        "database": name,
        "logical": is_older(cmap),
        "slots": [],
    }
    if is_there(cmap, placement) and NAME not in placement.given_up:
        comes = network(clustermap.address(cmap, cmap["legacy"]["minion"]))
        added = route(cmap).machine(cmap, placement, secret, comes)
        admits += added.pop("admits")
        row.update(added)
    # In the window and before it the cluster is the switch's; afterwards it is to run.
    runs = placement.database == minion and not placement.moving
    return {
        "states": ["base", "firewall", "postgres" if runs else "postgres.configured"],
        "firewall": {"ports": {PORT: [source(each["address"]) for each in admits]}},
        "postgres": {**row, "admits": admits},
    }


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if not is_there(cmap, placement):
        return {}
    at: dict[str, Any] = {"cluster": found(cmap)}
    if NAME in placement.given_up:
        return {"states": ["postgres.absent"], "postgres": at}
    if placement.moving:
        return {}
    at.update(database=database(cmap)[0], logical=is_older(cmap))
    if placement.database:
        at.update(
            replication=replication(secret),
            certificate={"authority": secret("pki_authority")},
            upstream={"host": placement.database, "port": PORT, "sslmode": "verify-full"},
        )
        return {"states": ["postgres.following"], "postgres": at}
    if placement.upcoming.get(NAME) == clustermap.the_machine(cmap, ROLE):
        at.update(route(cmap).source(cmap, secret))
    return {"states": ["postgres.source"], "postgres": at}


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database and not placement.upcoming.get(NAME):
        return {}
    return {"certificates": {AUTHORITY: secret("pki_authority")}}


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    there, client = (clustermap.the_machine(cmap, role) for role in (ROLE, "synapse"))
    if not is_there(cmap, placement) or not there or not client or NAME in placement.given_up:
        return {}
    row = cmap["synapse"]["database"]
    here = clustermap.address(cmap, cmap["legacy"]["minion"])
    made = relay(here, dsn_host(row), dsn_port(row), clustermap.address(cmap, client))
    made["allow"].append(clustermap.address(cmap, there))
    return {"postgresql": made}


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps() if is_sqlite(cmap) else route(cmap).hold(cmap)


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    way = sqlite if is_sqlite(cmap) else route(cmap)
    return way.steps(cmap, placement)


def no_return(cmap: Map, placement: Placement) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    if not is_sqlite(cmap) or not placement.database:
        return []
    what = "people have written to PostgreSQL since, and from there no way leads to SQLite"
    return [Problem(NAME, what, "mend what is wrong, and go on")]


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database:
        return {}
    at = {"cluster": CLUSTER}
    rows = {
        "new": Ask(placement.database, "pgstandby.status", at),
        "sessions": Ask(
            placement.database, "pgadmit.sessions", {**at, "database": database(cmap)[0]}
        ),
    }
    if is_sqlite(cmap):
        client = clustermap.the_machine(cmap, "synapse") or ""
        rows["ported"] = Ask(client, "synapse_port.recorded")
    elif NAME not in placement.given_up:
        rows.update(route(cmap).proofs(cmap, placement))
    return rows


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database:
        return []
    there = placement.database
    client = clustermap.address(cmap, clustermap.the_machine(cmap, "synapse") or "")
    sessions = told["sessions"]
    if "error" in told["new"] or "error" in sessions:
        error = told["new"].get("error") or sessions["error"]
        return [Check("new database", False, f"{there}: {error}")]
    ours = [row for row in sessions["sessions"] if row["client"] == client]
    bare = [row for row in ours if not row["ssl"]]
    serves = told["new"]["condition"] == "ready" and not told["new"].get("recovery", True)
    made = [
        Check(
            "new database",
            serves and bool(ours) and not bare,
            f"{there} is {'the' if serves else 'no'} primary, {len(ours)} connections of Synapse, "
            f"{len(ours) - len(bare)} of them by TLS",
        )
    ]
    if is_sqlite(cmap):
        made.append(sqlite.check(told["ported"]))
    elif NAME not in placement.given_up:
        made += route(cmap).checks(cmap, told)
    return made
