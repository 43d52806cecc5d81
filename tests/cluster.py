"""Clusters with workers, for tests: a cluster map, members of the registry, where things stand."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from saltworks import plan, slices, worker_table
from saltworks.registry import Member, State

from tests.render.stages import ACHIEVED, AFTER_M3, ARTIFACT, MAP

#: One machine of each kind.
EACH: Mapping[str, int] = dict.fromkeys(worker_table.table().kinds, 1)

REDIS = "redis"
#: Where things stand while M4 brings Redis, and takes it away.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "redis to come": AFTER_M3,
    "redis upcoming": {**AFTER_M3, "upcoming": {"redis": REDIS}},
    "redis moving": {**AFTER_M3, "upcoming": {"redis": REDIS}, "moving": True},
    "redis there": {**AFTER_M3, "redis": REDIS},
    "redis going back": {**AFTER_M3, "redis": REDIS, "upcoming": {"redis": ""}},
    "redis moving back": {**AFTER_M3, "redis": REDIS, "upcoming": {"redis": ""}, "moving": True},
}
NETWORK = "198.19.0.0/16"

#: The map with Redis and room for workers.
WORKER_MAP: dict[str, Any] = {
    **MAP,
    "machines": {**MAP["machines"], REDIS: {"role": "redis", "address": "198.18.0.16"}},
    "workers": {kind: {"processes": 1, "pool": f"{kind}-*"} for kind in EACH},
    "worker_networks": [NETWORK],
}


#: The same with a cluster of databases: who watches them, and what a failover may lose.
DATABASE_MAP: dict[str, Any] = {
    **WORKER_MAP,
    "machines": {
        **WORKER_MAP["machines"],
        "database-2": {"role": "database", "address": "198.18.0.17"},
        **{
            f"dcs-{number}": {"role": "dcs", "address": f"198.18.0.{17 + number}"}
            for number in (1, 2, 3)
        },
    },
    "database": {"first": "database", "durability": "sync", "standby_reads": True},
}
AFTER_M4: Mapping[str, Any] = {
    **AFTER_M3, "redis": REDIS, "dcs": True, "given_up": ["database", "media", "auth"],
}
#: Where things stand while M4 makes the cluster, and takes it away.
DATABASE_WAYS: Mapping[str, Mapping[str, Any]] = {
    "cluster to come": {**AFTER_M4, "dcs": False},
    "cluster watched": AFTER_M4,
    "cluster there": {**AFTER_M4, "clustered": True},
}


def databases(*states: State) -> tuple[Member, ...]:
    """The map's database machines as members, in these states."""
    names = ("database", "database-2")
    return tuple(
        Member(name, "database", DATABASE_MAP["machines"][name]["address"], state,
               f"2026-11-28T00:00:0{index}Z", 1, "0" * 64)
        for index, (name, state) in enumerate(zip(names, states, strict=False))
    )  # fmt: skip


def clustered(name: str, *rows: Member) -> plan.Placement:
    """Where things stand by :data:`DATABASE_WAYS`, with these members."""
    recorded = plan.Placement.recorded(DATABASE_MAP, DATABASE_WAYS[name])
    return replace(recorded, members=rows)


def member(minion: str, kind: str, number: int, state: State = "ready") -> Member:
    """A member; ``number`` makes its address, and who is older."""
    address = str(ip_address("198.19.0.0") + number)
    since = f"2026-11-26T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z"
    return Member(minion, kind, address, state, since, 1, "0" * 64)


def members(counts: Mapping[str, int]) -> tuple[Member, ...]:
    """So many machines of each kind, all ready."""
    rows = [(kind, index) for kind, count in counts.items() for index in range(1, count + 1)]
    return tuple(
        member(f"{kind}-{index}", kind, number) for number, (kind, index) in enumerate(rows, 1)
    )


def placement(*rows: Member) -> plan.Placement:
    """After M3, with Redis and these members."""
    base = plan.Placement.recorded(WORKER_MAP, {**AFTER_M3, "redis": REDIS})
    return replace(base, members=rows)


def pillars(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Cases of a role's SLS in a cluster with workers, as :func:`tests.render.stages.pillars`.

    :param path: of the SLS, below the project.
    """
    if path.parts[0] == "orch":
        for name in DATABASE_WAYS if "database" in path.parts else ():
            rows = databases("ready") if name == "cluster there" else ()
            for which, record in ACHIEVED.items():
                known = slices.for_orchestrations(DATABASE_MAP, clustered(name, *rows), record)
                yield f"{name}, {which}", {**known, "worker": "database-2"}, {}
        for name, record in ACHIEVED.items():
            known = slices.for_orchestrations(WORKER_MAP, placement(), record)
            yield f"redis, {name}", {**known, "worker": "sync-1"}, {}
        for name, row in WAYS.items():
            known = slices.for_orchestrations(
                WORKER_MAP, plan.Placement.recorded(WORKER_MAP, row), {}
            )
            yield name, {**known, "worker": "sync-1"}, {}
        return
    if path.stem not in ("init", "absent"):
        return
    role = path.parts[2]
    if role in ("database", "dcs", "synapse", "worker"):
        yield from _of_databases(role)
    placed = placement(*members(EACH), member("sync-9", "sync", 900, "joining"))
    machines = {
        "worker": [*(f"{kind}-1" for kind in EACH), "sync-9"],
        "legacy": [],
        "master": ["salt"],
    }.get(role, [role])
    for machine in machines:
        pillar = slices.slice_for(
            WORKER_MAP, placed, machine, lambda name: f"<{name}>", artifact=ARTIFACT
        )
        yield f"workers, {machine}", pillar, {"door.status": {"state": "open", "target": "synapse"}}
    if role in ("redis", "synapse", "proxy"):
        for name, row in WAYS.items():
            recorded = plan.Placement.recorded(WORKER_MAP, row)
            pillar = slices.slice_for(
                WORKER_MAP, recorded, role, lambda name: f"<{name}>", artifact=ARTIFACT
            )
            yield name, pillar, {"door.status": {"state": "open", "target": "synapse"}}
    if role in ("worker", "redis"):
        cmap = {**WORKER_MAP, "machines": {
            **WORKER_MAP["machines"],
            "worker": {"role": "worker", "kind": "sync", "address": "198.19.9.9"},
        }}
        bare = replace(placement(), redis="")
        yield "not yet", slices.slice_for(cmap, bare, role, lambda name: f"<{name}>"), {}


def _of_databases(role: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Cases of the machines that a cluster of databases changes."""
    machine = {"dcs": "dcs-1", "worker": "sync-1"}.get(role, role)
    for name in DATABASE_WAYS:
        for states in ((), ("ready",), ("ready", "joining"), ("draining", "ready")):
            rows = (*members({"sync": 1}), *databases(*states))
            placed = clustered(name, *rows)
            for one in (machine, *(["database-2"] if role == "database" else [])):
                pillar = slices.slice_for(
                    DATABASE_MAP, placed, one, lambda name: f"<{name}>", artifact=ARTIFACT
                )
                yield f"{name}, {one}, {' '.join(states) or 'alone'}", pillar, {}


def base64_of(localpart: str) -> str:
    """A localpart as Synapse's tokens have it: base64 without padding."""
    return base64.b64encode(localpart.encode()).decode().rstrip("=")
