"""Slices of workers' machines, and what they add to others' slices."""

from __future__ import annotations

from typing import Any

from . import clustermap, modules, routing, workers
from .clustermap import Map
from .parts import media
from .plan import (
    AUTHORITY,
    MAIN_REPLICATION_PORT,
    Placement,
    Secrets,
    endpoint,
    worker_sources,
)
from .synapse_config import worker_settings
from .worker_table import table


def nothing_runs() -> dict[str, Any]:
    """A machine of workers that is not admitted, or has gone: nothing runs, no secret is there."""
    return {"states": ["base", "synapse.absent", "media.absent", "firewall.absent"]}


def worker(
    cmap: Map, placement: Placement, minion: str, secret: Secrets, formula: dict[str, Any]
) -> dict[str, Any]:
    """A machine of workers: its processes' files, and no other secret than theirs.

    :param formula: what the pillar ``synapse`` is on every machine of Synapse, without its config.
    """
    found = workers.of(placement)
    rows = found.of(minion)
    kind = table().kinds[rows[0].kind]
    serves_media = "media" in kind.resources
    reads = any(row.minion == minion and row.reads for row in placement.members)
    formula = {
        **formula,
        "main": False,
        "config": worker_settings(cmap, placement, found, secret, media=serves_media, reads=reads),
        "libraries": modules.libraries(reads),
        "certificates": {**formula["certificates"], AUTHORITY: secret("pki_authority")},
        "workers": {
            row.name: {
                "config": workers.process_config(row, found),
                "url": f"http://{endpoint(row.address, row.port)}",
            }
            for row in rows
        },
    }
    beside: dict[str, Any] = {}
    if serves_media:
        # What is here Synapse has stored before it answered: it is never more than a cache.
        beside = media.cache(cmap, placement, secret, sends=False)
    states = beside.pop("states", [])
    if states:
        # What is beside it belongs to its account, which comes with the release.
        states = ["synapse.installed", *states]
    proxies = [clustermap.address(cmap, name) for name in clustermap.machines_of(cmap, "proxy")]
    rules: dict[int, list[str]] = {}
    for row in rows:
        for_requests, for_processes = workers.ports(row)
        rules.update({port: list(proxies) for port in for_requests})
        rules.update({port: processes(cmap, placement) for port in for_processes})
    # While something moves, or writers change, it is said elsewhere who restarts and when.
    held = placement.moving or placement.upcoming or minion in placement.stopped
    synapse = "synapse.prepared" if held else "synapse"
    return {
        "states": ["base", "firewall", *states, synapse],
        "firewall": {"ports": rules},
        "synapse": formula,
        **beside,
    }


def main_ports(cmap: Map, placement: Placement) -> dict[int, list[str]]:
    """Ports that workers need on Synapse's machine, and from where."""
    return {MAIN_REPLICATION_PORT: worker_sources(cmap, placement)} if placement.redis else {}


def nginx(cmap: Map, placement: Placement) -> dict[str, Any]:
    """What workers add to the pillar ``nginx`` of the machine that clients come to."""
    found = routing.nginx(workers.of(placement))
    return {"routing": found} if found else {}


def processes(cmap: Map, placement: Placement) -> list[str]:
    """From where Synapse's processes come, main first."""
    return [clustermap.address(cmap, placement.synapse), *worker_sources(cmap, placement)]
