"""Synapse's homeserver.yaml on one machine: settings of the map, and the plan's own words."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from . import clustermap, modules, parts, workers
from .clustermap import Map
from .plan import (
    CONFIG_DIR,
    MAIN_REPLICATION_PORT,
    MEDIA_DIR,
    POLL_PORT,
    PORT,
    RELAY_OFFSET,
    SQLITE_PATH,
    STANDBYS_FILE,
    Placement,
    Secrets,
    dsn_port,
    endpoint,
    port_key,
)


def homeserver_config(
    cmap: Map, placement: Placement, minion: str, secret: Secrets
) -> dict[str, Any]:
    """The complete homeserver.yaml for Synapse on a machine, secrets included.

    :param placement: where things stand; what has moved is reached at its own machine.
    :param minion: the machine it is for; on another one than the legacy machine
        what was reached through loopback is reached through the relays.
    :param secret: gives a secret by its name.
    """
    at_home = minion == cmap["legacy"]["minion"]
    config = _settings(cmap, placement, at_home)
    bind = "127.0.0.1" if at_home else clustermap.address(cmap, minion)
    config["listeners"] = _listeners(bind)
    if placement.redis and not at_home:
        config["listeners"].append(workers.replication_listener(bind, MAIN_REPLICATION_PORT))
        config.update(workers.main_config(cmap, placement, workers.of(placement)))
    resolved = resolve(config, secret)
    assert isinstance(resolved, dict)
    return resolved


#: Settings that no worker needs: who has it may make himself an administrator, with main.
ONLY_MAIN = ("registration_shared_secret", "registration_shared_secret_path")


def worker_settings(
    cmap: Map,
    placement: Placement,
    found: workers.Workers,
    secret: Secrets,
    *,
    media: bool,
    reads: bool = False,
) -> dict[str, Any]:
    """The homeserver.yaml of a machine of workers, which all of them read first.

    :param found: the plan's workers.
    :param media: whether they serve media, and so have the store's keys.
    :param reads: whether they read from standbys of the database.
    """
    config = _settings(cmap, placement, at_home=False)
    config.update(workers.shared_config(cmap, placement, found), enable_media_repo=media)
    if reads:
        config["modules"] = [*config.get("modules", []), modules.standby_reads(STANDBYS_FILE)]
    dropped = ONLY_MAIN if media else (*ONLY_MAIN, "media_storage_providers")
    resolved = resolve({k: v for k, v in config.items() if k not in dropped}, secret)
    assert isinstance(resolved, dict)
    return resolved


def _settings(cmap: Map, placement: Placement, at_home: bool) -> dict[str, Any]:
    """What all of Synapse's processes on a machine have in common; secrets are references."""
    legacy = cmap["legacy"]
    config = copy.deepcopy(dict(cmap["synapse"]["settings"]))
    config.update(
        server_name=cmap["server_name"],
        signing_key_path=f"{CONFIG_DIR}/signing.key",
        log_config=f"{CONFIG_DIR}/log.yaml",
        media_store_path=legacy["media_store_path"] if at_home else MEDIA_DIR,
        database=_database(cmap, at_home),
    )
    if listed := [*modules.rows(cmap), *modules.beside_workers(placement.redis)]:
        config["modules"] = listed
    if not at_home:
        for row in cmap["synapse"].get("loopback", []):
            _relocate(config, row, clustermap.address(cmap, legacy["minion"]))
    for part in parts.moved(placement):
        part.configure(config, cmap, placement)
    return config


def resolve(value: Any, secret: Secrets) -> Any:
    """Replace every ``{"secret": name}`` by the secret."""
    if isinstance(value, Mapping):
        if set(value) == {"secret"}:
            return secret(value["secret"])
        return {key: resolve(item, secret) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, secret) for item in value]
    return value


def _listeners(bind: str) -> list[dict[str, Any]]:
    return [
        {
            "port": port,
            "bind_addresses": [bind],
            "type": "http",
            "tls": False,
            "x_forwarded": True,
            "resources": [{"names": ["client", "federation"], "compress": False}],
        }
        for port in (PORT, POLL_PORT)
    ]


def _database(cmap: Map, at_home: bool) -> dict[str, Any]:
    database = cmap["synapse"]["database"]
    if database["engine"] == "sqlite3":
        path = database["path"] if at_home else SQLITE_PATH
        return {"name": "sqlite3", "args": {"database": path}}
    args: dict[str, Any] = {
        **database.get("args", {}),
        "database": database["name"],
        "user": database["user"],
        "password": {"secret": "database_password"},
        "host": database.get("host"),
        "port": dsn_port(database),
    }
    if not at_home:
        args["host"] = clustermap.address(cmap, cmap["legacy"]["minion"])
        args["port"] = dsn_port(database) + RELAY_OFFSET
        args["sslmode"] = "require"
    return {"name": "psycopg2", "args": {k: v for k, v in args.items() if v is not None}}


def _relocate(config: dict[str, Any], row: Mapping[str, Any], address: str) -> None:
    steps = row["path"].split(".")
    node: Any = config
    for step in steps[:-1]:
        node = node[int(step)] if isinstance(node, list) else node[step]
    last: Any = int(steps[-1]) if isinstance(node, list) else steps[-1]
    port = row["port"] + RELAY_OFFSET
    value = str(node[last])
    if "://" in value:
        node[last] = urlunsplit(urlsplit(value)._replace(netloc=endpoint(address, port)))
    elif isinstance(node, list):
        # Beside an entry of a list there is no place for its port.
        node[last] = endpoint(address, port)
    else:
        node[last] = address
        node[port_key(last)] = port
