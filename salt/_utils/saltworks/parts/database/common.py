"""What the database's routes have in common: names, and what the cluster map says of it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from ... import clustermap
from ...clustermap import Map
from ...meeting import Check
from ...membership import DATABASE
from ...plan import LOOPBACK, RELAY_OFFSET, Placement, Secrets, dsn_host, dsn_port
from ..model import Ask

NAME = "database"
ROLE = DATABASE

#: Debian's, of which the new machine's cluster is.
MAJOR = 15
CLUSTER = f"{MAJOR}/main"
DATA_DIR = "/var/lib/postgresql"
DEBIAN = "12"
PORT = 5432

#: Oldest that logical replication to ours is made for: its publications and slots are the same.
OLDEST = 13

#: By which the clusters copy each other.
REPLICATION = "saltworks_replication"


def is_sqlite(cmap: Map) -> bool:
    """Whether there is a file to be ported, and no cluster."""
    return bool(cmap["synapse"]["database"]["engine"] == "sqlite3")


def major(cmap: Map) -> int:
    """Major version of the cluster as found, as the map says; ours where it says none."""
    return int(cmap["synapse"]["database"].get("version", MAJOR))


def is_older(cmap: Map) -> bool:
    """Whether the files of the cluster as found are not ours to copy, but its rows are."""
    return not is_sqlite(cmap) and major(cmap) < MAJOR


def is_there(cmap: Map, placement: Placement) -> bool:
    """Whether there is a cluster on the legacy machine that this part may move, as after M2."""
    database = cmap["synapse"]["database"]
    host = dsn_host(database)
    return (
        placement.synapse != cmap["legacy"]["minion"]
        and database["engine"] == "psycopg2"
        and (host in LOOPBACK or host.startswith("/"))
    )


def database(cmap: Map) -> tuple[str, str]:
    """Name and role of Synapse's database in PostgreSQL; the usual ones where it is SQLite."""
    row = cmap["synapse"]["database"]
    return row.get("name", "synapse"), row.get("user", "synapse_user")


def found(cmap: Map) -> dict[str, int]:
    """The cluster as found, for ``pgcluster.locate``."""
    return {"port": dsn_port(cmap["synapse"]["database"])}


def machine_of(cmap: Map) -> str:
    """Id of the database machine, empty when none is declared."""
    return clustermap.the_machine(cmap, ROLE) or ""


def network(source: str) -> str:
    """An address as the network that it is alone in; a network as it is: for pg_hba.conf."""
    return str(ip_network(source))


def source(network: str) -> str:
    """The reverse of :func:`network`, for the firewall."""
    parsed = ip_network(network)
    return str(parsed.network_address) if parsed.num_addresses == 1 else network


def replication(secret: Secrets) -> dict[str, str]:
    """The role by which the clusters copy each other, with its password."""
    return {"role": REPLICATION, "password": secret("database_replication_password")}


def source_roles(cmap: Map, secret: Secrets) -> dict[str, dict[str, Any]]:
    """What the cluster as found is given while it is copied."""
    return {
        REPLICATION: {**replication(secret), "replication": True},
        # By the same password as before: on the new machine only SCRAM lets it in.
        cmap["synapse"]["database"]["user"]: {"password": secret("database_password")},
    }


def upstream(cmap: Map) -> dict[str, Any]:
    """How the new machine reaches the cluster as found: through the relay on its machine."""
    port = dsn_port(cmap["synapse"]["database"]) + RELAY_OFFSET
    # Its certificate is nobody's word; by channel binding the password proves that no one is in
    # between (PostgreSQL: SCRAM-SHA-256-PLUS).
    binding = {"sslmode": "require", "channel_binding": "require"}
    return {"host": cmap["legacy"]["minion"], "port": port, **binding}


def ends(cmap: Map, placement: Placement) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Machine and cluster that are left, and those that are gone to: there, or back."""
    there = (cmap["legacy"]["minion"], found(cmap)), (machine_of(cmap), CLUSTER)
    return (there[1], there[0]) if placement.database else there


def stand_down(
    placement: Placement, function: str, machine: str, kwargs: Mapping[str, Any]
) -> tuple[Ask, ...]:
    """What a rollback that fails begins its own way back with: the old cluster is fenced again.

    On the way there nothing: the copy that was promoted is thrown away by the next run.
    """
    if not placement.database:
        return ()
    undone = (
        "The old database may take writes there, though nothing of ours writes to it. Bring that "
        "machine back and run orch.m3.database or its rollback: it is fenced before anything else"
    )
    return (Ask(machine, function, {**kwargs, "taken_back": True}, undone=undone),)


def parted(machine: str, row: Mapping[str, Any]) -> Check | None:
    """What to say of an old cluster that does not follow since a rollback failed.

    Good if it is fenced: it is safe there, and may be given up as it is. Before a milestone is
    achieved, its highstate has copied it again, or failed.

    :param row: its ``status``.
    """
    if row.get("stands") != "parted":
        return None
    words = (
        "takes no write, but does not follow since a rollback failed: there is no way back until "
        "orch.m3.database, or its rollback, has copied it again"
    )
    return Check("old database", True, f"{machine} {words}")


def content(old: Mapping[str, Any], new: Mapping[str, Any]) -> Check:
    """Whether both had the same rows in the moment of the switch; see ``pgcontent.measure``."""
    for row in (old, new):
        if "error" in row or not row:
            return Check("content", False, str(row.get("error", "was not measured yet")))
    if old["moment"] != new["moment"]:
        return Check("content", False, f"measured at {old['moment']} and at {new['moment']}")
    names = sorted(set(old["tables"]) | set(new["tables"]))
    wrong = [
        f"{name} ({old['tables'].get(name)}, {new['tables'].get(name)})"
        for name in names
        if old["tables"].get(name) != new["tables"].get(name)
    ]
    rows = sum(int(count) for count, _ in old["tables"].values())
    equal = f"{len(names)} tables with {rows} rows are equal, by checksum, as of the switch"
    return Check("content", not wrong, f"differs in {', '.join(wrong)}" if wrong else equal)
