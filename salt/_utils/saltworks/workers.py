"""The plan's workers: which processes there are, what each writes and does, and who asks whom.

A pure function of the cluster map, the placement (with the registry's members) and the worker
table. A member that is ``ready`` has duties and is in the routing; one that is ``joining`` runs
without either, and one that is ``draining`` still runs. Without the bus (``placement.redis``)
there is no worker and no change to anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import clustermap
from .clustermap import Map
from .plan import (
    AUTHORITY_FILE,
    CONFIG_DIR,
    MAIN_REPLICATION_PORT,
    REDIS_PORT,
    REDIS_USER,
    Placement,
    endpoint,
)
from .worker_table import MAIN, Kind, Table, table

#: Process ``n`` of a machine, counted from 1, listens this far above these: for clients and
#: other servers, and for Synapse's other processes. The schema allows 64 of them.
PORT, REPLICATION_PORT = 8100, 9100


@dataclass(frozen=True)
class Process:
    """A worker process.

    :param name: ``worker_name``: its machine's id and its number there, whatever else there is.
    :param machine: minion id.
    :param kind: its machine's.
    :param address: its machine's.
    :param port: of its HTTP listener.
    :param replication_port: of the listener for Synapse's other processes.
    :param since: when its machine came into its state, ISO 8601.
    :param ready: whether it has duties and is in the routing.
    """

    name: str
    machine: str
    kind: str
    address: str
    port: int
    replication_port: int
    since: str
    ready: bool


@dataclass(frozen=True)
class Workers:
    """All workers.

    :param processes: by name, in the order of names.
    :param streams: stream to the names of its writers; without those that main writes.
    :param duties: kind to the names of those who have its duty; without those of main.
    :param pools: group to the processes that serve it, none of them empty.
    :param routes: group to the pool that serves it, or ``main``.
    """

    processes: Mapping[str, Process]
    streams: Mapping[str, tuple[str, ...]]
    duties: Mapping[str, tuple[str, ...]]
    pools: Mapping[str, tuple[Process, ...]]
    routes: Mapping[str, str]

    def of(self, machine: str) -> tuple[Process, ...]:
        """The processes of a machine."""
        return tuple(row for row in self.processes.values() if row.machine == machine)


def of(placement: Placement, known: Table | None = None) -> Workers:
    """The workers as things stand.

    :param known: the worker table; the project's own by default.
    """
    known = known or table()
    rows = {row.name: row for row in sorted(_processes(placement, known), key=_by_name)}
    ready: dict[str, list[Process]] = {}
    for row in rows.values():
        if row.ready:
            ready.setdefault(row.kind, []).append(row)
    streams = {
        name: _holders(name, stream.holders, ready[stream.writer])
        for name, stream in known.streams.items()
        if stream.writer in ready
    }
    duties = {
        name: _holders(name, kind.holders, ready[name])
        for name, kind in known.kinds.items()
        if kind.duty and name in ready
    }
    pools: dict[str, tuple[Process, ...]] = {}
    for name, group in known.groups.items():
        if not group.endpoints:
            continue
        if name in streams:
            pools[name] = tuple(rows[writer] for writer in streams[name])
        elif name in ready:
            pools[name] = tuple(ready[name])
    routes = {
        name: _route(name, known, pools) for name, row in known.groups.items() if row.endpoints
    }
    return Workers(rows, streams, duties, pools, routes)


def dutiful(*plans: Workers) -> set[str]:
    """Names of the processes that write a stream or have a duty, in any of these plans."""
    return {
        name
        for plan in plans
        for names in (*plan.streams.values(), *plan.duties.values())
        for name in names
    }


def shared_config(cmap: Map, placement: Placement, workers: Workers) -> dict[str, Any]:
    """What every process of Synapse must know of the others; secrets stay references.

    A worker that only serves requests, or has a duty that its own kind alone is told of, does not
    show here: it comes and goes without a restart of anybody.
    """
    main = clustermap.address(cmap, placement.synapse)
    writers = sorted({name for names in workers.streams.values() for name in names})
    config: dict[str, Any] = {
        "redis": {
            "enabled": True,
            "host": placement.redis,
            "port": REDIS_PORT,
            "username": REDIS_USER,
            "password": {"secret": "redis_password"},
            "use_tls": True,
            "ca_file": AUTHORITY_FILE,
        },
        "worker_replication_secret": {"secret": "worker_replication_secret"},
        # Main gives them only with this; workers need it as well to have the same words.
        "enable_metrics": True,
        "instance_map": {
            MAIN: _location(main, MAIN_REPLICATION_PORT),
            **{
                name: _location(row.address, row.replication_port)
                for name in writers
                for row in (workers.processes[name],)
            },
        },
    }
    if workers.streams:
        config["stream_writers"] = {name: list(names) for name, names in workers.streams.items()}
    return config


def main_config(
    cmap: Map, placement: Placement, workers: Workers, known: Table | None = None
) -> dict[str, Any]:
    """What the main process must know beside its settings."""
    known = known or table()
    config = shared_config(cmap, placement, workers)
    for name in workers.duties:
        config.update(_duty(known.kinds[name], workers))
    if "media" in workers.duties:
        config["enable_media_repo"] = False
    return config


def process_config(row: Process, workers: Workers, known: Table | None = None) -> dict[str, Any]:
    """A worker's own file, read after the shared one."""
    kind = (known or table()).kinds[row.kind]
    listeners = [_listener(row.address, row.port, [*kind.resources, "health", "metrics"])]
    if _writes(kind, known or table()):
        listeners.append(replication_listener(row.address, row.replication_port))
    return {
        "worker_app": "synapse.app.generic_worker",
        "worker_name": row.name,
        "worker_log_config": f"{CONFIG_DIR}/log.yaml",
        "worker_listeners": listeners,
        **(_duty(kind, workers) if row.kind in workers.duties else {}),
    }


def replication_listener(address: str, port: int) -> dict[str, Any]:
    """Where a process answers Synapse's other processes, who show ``worker_replication_secret``.

    And those who want to know how far it has come (``synapse_worker.positions``).
    """
    return _listener(address, port, ["replication", "metrics"])


def ports(row: Process, known: Table | None = None) -> tuple[list[int], list[int]]:
    """Ports of a process: those for nginx, and those for Synapse's other processes."""
    known = known or table()
    return [row.port], [row.replication_port] if _writes(known.kinds[row.kind], known) else []


def _processes(placement: Placement, known: Table) -> Iterable[Process]:
    if not placement.redis:
        return
    for member in placement.members:
        if member.state == "gone" or not member.address or member.kind not in known.kinds:
            continue
        for number in range(1, member.processes + 1):
            yield Process(
                name=f"{member.minion}-{number}",
                machine=member.minion,
                kind=member.kind,
                address=member.address,
                port=PORT + number,
                replication_port=REPLICATION_PORT + number,
                since=member.since,
                ready=member.state == "ready",
            )


def _by_name(row: Process) -> tuple[str, int]:
    return row.machine, row.port


def _by_age(row: Process) -> tuple[str, str, int]:
    return row.since, row.machine, row.port


def _holders(what: str, holders: str, ready: Sequence[Process]) -> tuple[str, ...]:
    """Names of those who write a stream or have a duty; who comes later takes nothing away.

    But streams that are spread may move to a new machine: it restarts everybody in any case.
    """
    if holders == "many":
        return tuple(row.name for row in ready)
    if holders == "one":
        return (min(ready, key=_by_age).name,)
    return (max(ready, key=lambda row: _weight(what, row.name)).name,)


def _weight(what: str, name: str) -> str:
    # Rendezvous hashing: one that leaves or comes moves only its own share.
    return hashlib.sha256(f"{what}/{name}".encode()).hexdigest()


def _route(name: str, known: Table, pools: Mapping[str, Any]) -> str:
    while name != MAIN and name not in pools:
        name = known.groups[name].fallback
    return name


def _duty(kind: Kind, workers: Workers) -> dict[str, Any]:
    names = workers.duties[kind.name]
    return {kind.duty: list(names) if kind.holders == "many" else names[0]}


def _writes(kind: Kind, known: Table) -> bool:
    return any(stream.writer == kind.name for stream in known.streams.values())


def _location(address: str, port: int) -> dict[str, Any]:
    # Synapse puts host and port together as they are.
    return {"host": endpoint(address, port).rpartition(":")[0], "port": port}


def _listener(address: str, port: int, names: list[str]) -> dict[str, Any]:
    return {
        "type": "http",
        "port": port,
        "bind_addresses": [address],
        "x_forwarded": "replication" not in names,
        "resources": [{"names": names, "compress": False}],
    }
