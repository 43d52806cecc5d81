"""Which machines the cluster map lets be members, and of which kind: workers, and databases."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from .clustermap import Map, machines_of, standby_reads, the_machine
from .errors import Problem, Refused
from .invites import matches
from .worker_table import table

#: Kind of a machine of the database's cluster, beside those of workers.
DATABASE = "database"


@dataclass(frozen=True)
class Declared:
    """What the map says of a member's machine.

    :param kind: the worker kind, or :data:`DATABASE`.
    :param address: its address; empty for a machine of a pool, which has it from elsewhere.
    :param processes: how many processes of Synapse it is to run.
    :param reads: whether these are to read from standbys of the database.
    """

    kind: str
    address: str = ""
    processes: int = 1
    reads: bool = False


def declared(cmap: Map, minion: str, *, clustered: bool = False) -> Declared | None:
    """What the map says of a minion; None when it may not be a member.

    :param clustered: the database is a cluster, so that there may be standbys.

    An id that stands among the machines is that machine and none of a pool.
    """
    if row := cmap["machines"].get(minion):
        if row["role"] == DATABASE:
            return Declared(DATABASE, row["address"])
        if row["role"] != "worker":
            return None
        return _worker(cmap, row["kind"], row["address"], clustered)
    for kind, pattern in pools(cmap).items():
        if matches(pattern, minion):
            return _worker(cmap, kind, "", clustered)
    return None


def named(cmap: Map) -> list[str]:
    """Machines that the map names and lets come by themselves.

    Without the database's first, which M3 makes and M4 makes a member.
    """
    first = the_machine(cmap, DATABASE)
    databases = [name for name in machines_of(cmap, DATABASE) if name != first]
    return sorted([*machines_of(cmap, "worker"), *databases])


def pools(cmap: Map) -> dict[str, str]:
    """The pattern of ids of each kind whose machines come and go."""
    rows = sorted(cmap.get("workers", {}).items())
    return {kind: row["pool"] for kind, row in rows if "pool" in row}


def may_be_invited(cmap: Map, pattern: str) -> bool:
    """Whether the map lets the machines of an invite be workers: one by its id, or a whole pool."""
    if pattern.endswith("*"):
        return any(pattern.startswith(pool[:-1]) for pool in pools(cmap).values())
    return declared(cmap, pattern) is not None


def placed(cmap: Map, minion: str, told: list[str]) -> str:
    """A member's address, out of those that its machine says it has.

    What a machine says is believed within what the map lets it say: one address in the workers'
    networks that is no other machine's.

    :param told: the addresses of its interfaces.
    :raises Refused: it is no member, or has no address that it may have.
    """
    row = declared(cmap, minion)
    if row is None:
        what = "is no worker or database in the cluster map"
        raise Refused("join", [Problem(minion, what, "declare it, or drain it")])
    if row.address:
        return row.address
    networks = cmap.get("worker_networks", [])
    taken = {machine["address"] for machine in cmap["machines"].values()}
    own = sorted(
        address
        for address in set(told) - taken
        if any(ip_address(address) in ip_network(network) for network in networks)
    )
    if len(own) != 1:
        among = ", ".join(networks) or "none, say worker_networks"
        what = f"has {len(own)} addresses of its own in the workers' networks ({among})"
        raise Refused("join", [Problem(minion, what, "give it one there that nobody else has")])
    return own[0]


def _worker(cmap: Map, kind: str, address: str, clustered: bool) -> Declared:
    processes = int(cmap.get("workers", {}).get(kind, {}).get("processes", 1))
    may = kind in table().kinds and table().kinds[kind].standby_reads
    return Declared(kind, address, processes, may and clustered and standby_reads(cmap))
