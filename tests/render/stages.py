"""Pillars of roles and orchestrations: what the plan really gives, at every stage of the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saltworks import milestone, plan, slices

MAP: dict[str, Any] = {
    "name": "lale",
    "server_name": "lale.test",
    "public": {"name": "chat.lale.test", "ports": [443, 8448]},
    "releases": {"synapse": "1.163.2"},
    "machines": {
        "salt": {"role": "master", "address": "198.18.0.2"},
        "legacy": {"role": "legacy", "address": "198.18.0.10"},
        "proxy": {"role": "proxy", "address": "198.18.0.11"},
        "synapse": {"role": "synapse", "address": "198.18.0.12"},
        "database": {"role": "database", "address": "198.18.0.13"},
        "storage": {"role": "storage", "address": "198.18.0.14"},
        "directory": {"role": "directory", "address": "198.18.0.15"},
    },
    "legacy": {
        "minion": "legacy",
        "unit": "matrix-synapse.service",
        "user": "matrix",
        "group": "matrix",
        "config_path": "/home/matrix/synapse/homeserver.yaml",
        "listener": {"address": "127.0.0.1", "port": 8008},
        "media_store_path": "/home/matrix/synapse/media_store",
        "nginx_sites": ["/etc/nginx/sites-enabled/matrix"],
    },
    "synapse": {
        "settings": {"macaroon_secret_key": {"secret": "macaroon_secret_key"}},
        "database": {
            "engine": "psycopg2", "name": "synapse", "user": "synapse_user", "host": "localhost",
        },
        "modules": [{"module": "ldap_auth_provider.LdapAuthProviderModule", "config": {"uri": "ldap://localhost:389"}}],
        "loopback": [{"path": "modules.0.config.uri", "host": "localhost", "port": 389}],
    },
    "build": {},
    "backup": {"directory": "/var/backups/saltworks"},
}
SQLITE = {"engine": "sqlite3", "path": "/home/matrix/synapse/homeserver.db"}
ARTIFACT = {"source": "salt://releases/synapse.tar.gz", "source_hash": "sha256=" + "0" * 64}

AFTER_M2 = {"managed": True, "front": "proxy", "synapse": "synapse"}
AFTER_M3 = {**AFTER_M2, "database": "database", "media": "storage", "auth": "directory"}

#: Where things stand, from the server as found to the old machine's retirement.
PLACEMENTS: dict[str, dict[str, Any]] = {
    "as found": {},
    "after M1": {"managed": True},
    "front moved": {"managed": True, "front": "proxy"},
    "moving": {"managed": True, "front": "proxy", "moving": True},
    "after M2": AFTER_M2,
    "retired": {**AFTER_M2, "retired": True},
}
#: The same from then on.
M3_PLACEMENTS: dict[str, dict[str, Any]] = {
    "database upcoming": {**AFTER_M2, "upcoming": {"database": "database"}},
    "database moving": {**AFTER_M2, "upcoming": {"database": "database"}, "moving": True},
    "database held": {
        **AFTER_M2,
        "upcoming": {"database": "database"},
        "moving": True,
        "held": "database",
    },
    "database moved": {**AFTER_M2, "database": "database"},
    "media upcoming": {**AFTER_M2, "upcoming": {"media": "storage"}},
    "media moved": {**AFTER_M2, "media": "storage"},
    "media going back": {**AFTER_M2, "media": "storage", "upcoming": {"media": ""}},
    "media moving, database moved": {
        **AFTER_M2,
        "database": "database",
        "upcoming": {"media": "storage"},
        "moving": True,
    },
    "media moving back": {
        **AFTER_M2,
        "media": "storage",
        "upcoming": {"media": ""},
        "moving": True,
    },
    "auth upcoming": {**AFTER_M2, "upcoming": {"auth": "directory"}},
    "auth moved": {**AFTER_M2, "auth": "directory"},
    "auth moving": {**AFTER_M2, "upcoming": {"auth": "directory"}, "moving": True},
    "auth going back": {**AFTER_M2, "auth": "directory", "upcoming": {"auth": ""}},
    "auth finalized": {**AFTER_M2, "auth": "directory", "given_up": ["auth"]},
    "after M3": AFTER_M3,
    "back upcoming": {**AFTER_M3, "upcoming": {"database": ""}},
    "M3 finalized": {**AFTER_M3, "retired": True, "given_up": ["database", "media", "auth"]},
}
#: Runs of M1 alone, on the machine that Synapse has not left.
ONLY_M1 = ("prepared", "backed_up", "window", "back", "released")
ACHIEVED: dict[str, dict[str, Any]] = {
    "first": {},
    "second run": {name: {"state": "achieved"} for name in milestone.AFTER},
}


def maps() -> Iterator[tuple[str, dict[str, Any]]]:
    """The cluster maps: each engine, and the old server alone before M2."""
    yield "postgresql", MAP
    older = {**MAP["synapse"]["database"], "version": 14}
    yield "older postgresql", {**MAP, "synapse": {**MAP["synapse"], "database": older}}
    yield "sqlite", {**MAP, "synapse": {**MAP["synapse"], "database": SQLITE}}
    alone = {name: MAP["machines"][name] for name in ("salt", "legacy")}
    yield "old server alone", {**MAP, "machines": alone}


def pillars(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pillar and answers of execution functions of every case of an SLS.

    :param path: of the SLS, below the project.
    """
    if path.parts[:2] in (("orch", "worker"), ("orch", "database")):
        yield from _of_workers()
        return
    if path.parts[0] == "orch":
        yield from _of_orchestrations()
        return
    role = path.parts[2]
    for map_name, cmap in maps():
        for stage, row in {**PLACEMENTS, **M3_PLACEMENTS}.items():
            if row.get("front") and ("proxy" not in cmap["machines"] or path.stem in ONLY_M1):
                continue
            machine = {"master": "salt"}.get(role, role)
            if machine not in cmap["machines"]:
                continue
            placement = plan.Placement.recorded(cmap, row)
            target = "legacy" if placement.managed else "found"
            functions = {"door.status": {"state": "open", "target": target}}
            pillar = slices.slice_for(
                cmap,
                placement,
                machine,
                lambda name: f"<{name}>",
                artifact=ARTIFACT,
                host_keys={
                    "legacy": "198.18.0.10 ssh-ed25519 AAAA",
                    "directory": "198.18.0.15 ssh-ed25519 AAAB",
                },
            )
            yield f"{map_name}, {stage}", pillar, functions


def _of_workers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    placement = plan.Placement.recorded(MAP, AFTER_M3)
    pillar = slices.for_orchestrations(MAP, placement, ACHIEVED["second run"])
    told = {
        "nobody is told": {"stop": {}, "apply": []},
        "everybody is told": {
            "stop": {"synapse": ["synapse"], "events-1": ["synapse-worker@events-1-1"]},
            "apply": [["synapse"], ["events-1", "sync-2"]],
        },
    }
    for name, row in told.items():
        yield name, {**pillar, "worker": "sync-2", "told": row}, {}


def _of_orchestrations() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    yield "no map", slices.for_orchestrations(None, None, {}), {}
    for stage in ("as found", "front moved", "moving"):
        for name, record in ACHIEVED.items():
            placement = plan.Placement.recorded(MAP, PLACEMENTS[stage])
            yield f"{stage}, {name}", slices.for_orchestrations(MAP, placement, record), {}
    for stage in ("database moving", "database moved", "media moving back"):
        placement = plan.Placement.recorded(MAP, M3_PLACEMENTS[stage])
        yield stage, slices.for_orchestrations(MAP, placement, {}), {}
    placement = plan.Placement.recorded(MAP, M3_PLACEMENTS["back upcoming"])
    record = ACHIEVED["second run"]
    yield "back upcoming, achieved", slices.for_orchestrations(MAP, placement, record), {}
    placement = plan.Placement.recorded(MAP, M3_PLACEMENTS["media moving, database moved"])
    record = {"m3.database": {"state": "achieved"}}
    yield "media moving, database achieved", slices.for_orchestrations(MAP, placement, record), {}
    older = {**MAP["synapse"]["database"], "version": 14}
    held: dict[str, Any] = {**MAP, "synapse": {**MAP["synapse"], "database": older}}
    yield "older postgresql", slices.for_orchestrations(held, None, {}), {}
    synapse = {**MAP["synapse"], "modules": [], "loopback": []}
    rows = {name: row for name, row in MAP["machines"].items() if name != "directory"}
    bare: dict[str, Any] = {**MAP, "synapse": synapse, "machines": rows}
    for name, record in ACHIEVED.items():
        yield f"no directory, {name}", slices.for_orchestrations(bare, None, record), {}
