"""The plan: from what is declared and where things stand to each machine's slice.

A pure function of the cluster map, the placement and a way to look up secrets;
everything derived (configuration, upstreams, relays, who may talk to whom) comes
from here and is rendered by the formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from . import clustermap
from .clustermap import Map

#: Ports of the managed Synapse: all requests, and the long polls apart, so that
#: requests in flight can be counted without them (see formulas/nginx/README.md).
PORT = 8008
POLL_PORT = 8009

#: A relay of the legacy machine listens this far above the port it relays to,
#: because the service itself may hold the port on every address.
RELAY_OFFSET = 10000

CONFIG_DIR = "/etc/synapse"
DATA_DIR = "/var/lib/synapse"
MEDIA_DIR = f"{DATA_DIR}/media_store"
SQLITE_PATH = f"{DATA_DIR}/homeserver.db"
HANDOVER_DIR = "/var/lib/saltworks/handover"
TRANSFER_DIR = "/etc/saltworks/transfer"
SERVICE = "synapse"
#: Synapse's account where it is ours to choose; on the legacy machine it is the one found.
USER = "synapse"
RELEASES_DIR = "/opt/synapse/releases"
ARTIFACTS_DIR = "/srv/saltworks-artifacts/releases"

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Secrets = Callable[[str], str]


@dataclass(frozen=True)
class Placement:
    """Which machine serves what, as far as the milestones have come.

    :param synapse: id of the machine on which Synapse runs.
    :param managed: whether it is our release there, or still the one found.
    :param front: id of the machine whose nginx takes the clients' requests.
    :param retired: whether the legacy machine's chat site has been taken away.
    :param moving: Synapse is between two machines: until it has arrived, no state run
        starts or stops it anywhere, or opens the door.
    """

    synapse: str
    managed: bool
    front: str
    retired: bool = False
    moving: bool = False

    @classmethod
    def recorded(cls, cmap: Map, row: Mapping[str, Any]) -> Placement:
        """The recorded placement; what was never recorded is as it was found."""
        legacy = cmap["legacy"]["minion"]
        return cls(
            synapse=str(row.get("synapse", legacy)),
            managed=bool(row.get("managed", False)),
            front=str(row.get("front", legacy)),
            retired=bool(row.get("retired", False)),
            moving=bool(row.get("moving", False)),
        )


@dataclass(frozen=True)
class Backend:
    """Where nginx reaches Synapse."""

    address: str
    port: int
    poll_port: int

    def as_pillar(self) -> dict[str, Any]:
        return {"address": self.address, "port": self.port, "poll_port": self.poll_port}


def drain_port(cmap: Map, placement: Placement) -> int:
    """The port whose established connections are the requests in flight."""
    return PORT if placement.managed else cmap["legacy"]["listener"]["port"] + RELAY_OFFSET


def homeserver_config(cmap: Map, minion: str, secret: Secrets) -> dict[str, Any]:
    """The complete homeserver.yaml for Synapse on a machine, secrets included.

    :param minion: the machine it is for; on another one than the legacy machine
        what was reached through loopback is reached through the relays.
    :param secret: gives a secret by its name.
    """
    legacy = cmap["legacy"]
    at_home = minion == legacy["minion"]
    config = copy.deepcopy(dict(cmap["synapse"]["settings"]))
    config.update(
        server_name=cmap["server_name"],
        listeners=_listeners("127.0.0.1" if at_home else clustermap.address(cmap, minion)),
        signing_key_path=f"{CONFIG_DIR}/signing.key",
        log_config=f"{CONFIG_DIR}/log.yaml",
        media_store_path=legacy["media_store_path"] if at_home else MEDIA_DIR,
        database=_database(cmap, at_home),
    )
    modules = copy.deepcopy(list(cmap["synapse"].get("modules", [])))
    if modules:
        config["modules"] = modules
    if not at_home:
        for row in cmap["synapse"].get("loopback", []):
            _relocate(config, row, clustermap.address(cmap, legacy["minion"]))
    resolved = resolve(config, secret)
    assert isinstance(resolved, dict)
    return resolved


def resolve(value: Any, secret: Secrets) -> Any:
    """Replace every ``{"secret": name}`` by the secret."""
    if isinstance(value, Mapping):
        if set(value) == {"secret"}:
            return secret(value["secret"])
        return {key: resolve(item, secret) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, secret) for item in value]
    return value


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """The legacy machine's relays, by name.

    Before M1 one on loopback, so that requests in flight to the Synapse found can
    be counted apart from long polls; while Synapse or the front are elsewhere,
    those through which the other machines reach what stays behind.
    """
    legacy = cmap["legacy"]["minion"]
    if not placement.managed:
        port = cmap["legacy"]["listener"]["port"]
        return {
            "synapse-found": {
                "listen": f"127.0.0.1:{port + RELAY_OFFSET}",
                "target": f"{cmap['legacy']['listener']['address']}:{port}",
                "allow": [],
            }
        }
    here = clustermap.address(cmap, legacy)
    rows: dict[str, dict[str, Any]] = {}
    proxy = clustermap.the_machine(cmap, "proxy")
    synapse = clustermap.the_machine(cmap, "synapse")
    if proxy and placement.synapse == legacy:
        for name, port in (("synapse", PORT), ("synapse-polls", POLL_PORT)):
            rows[name] = _relay(here, "127.0.0.1", port, clustermap.address(cmap, proxy))
    if synapse:
        allow = clustermap.address(cmap, synapse)
        database = cmap["synapse"]["database"]
        if database["engine"] == "psycopg2":
            rows["postgresql"] = _relay(here, _dsn_host(database), _dsn_port(database), allow)
        for row in cmap["synapse"].get("loopback", []):
            rows[f"loopback-{row['port']}"] = _relay(here, row["host"], row["port"], allow)
    return rows


def backends(cmap: Map, placement: Placement, front: str) -> dict[str, Backend]:
    """Every place where a front machine may find Synapse, by the door's target name."""
    legacy = cmap["legacy"]["minion"]
    listener = cmap["legacy"]["listener"]
    if front == legacy:
        return {
            "found": Backend(
                listener["address"], listener["port"] + RELAY_OFFSET, listener["port"]
            ),
            "legacy": Backend("127.0.0.1", PORT, POLL_PORT),
        }
    here = clustermap.address(cmap, legacy)
    targets = {"legacy": Backend(here, PORT + RELAY_OFFSET, POLL_PORT + RELAY_OFFSET)}
    synapse = clustermap.the_machine(cmap, "synapse")
    if synapse:
        targets["synapse"] = Backend(clustermap.address(cmap, synapse), PORT, POLL_PORT)
    return targets


def door_target(cmap: Map, placement: Placement, front: str) -> str:
    """The backend that a front machine's door opens to, as things stand."""
    legacy = cmap["legacy"]["minion"]
    if placement.synapse != legacy:
        return "synapse"
    if front == legacy and not placement.managed:
        return "found"
    return "legacy"


def transfers(cmap: Map) -> dict[str, dict[str, str]]:
    """What M2 copies from the legacy machine to Synapse's own, by name."""
    media = {"source": cmap["legacy"]["media_store_path"], "destination": MEDIA_DIR}
    rows = {"media": {**media, "user": USER}}
    if cmap["synapse"]["database"]["engine"] == "sqlite3":
        rows["database"] = {"source": HANDOVER_DIR, "destination": HANDOVER_DIR, "user": "root"}
    return rows


def backup(directory: str, database: Mapping[str, Any]) -> dict[str, Any]:
    """M1's way back: the states take it, the precheck looks whether it stands.

    :param directory: ``backup.directory`` of the cluster map.
    :param database: ``synapse.database`` of it.
    :returns: ``directory``; ``mark``, the restore point in the window; ``live``, SQLite's copy
        from before it; ``cluster``, PostgreSQL's (see ``pgcluster.locate``).
    """
    return {
        "directory": f"{directory}/m1",
        "mark": "m1",
        "live": "m1-live",
        "cluster": {"port": _dsn_port(database)},
    }


@dataclass(frozen=True)
class Handover:
    """Synapse's move from one machine to another, with the arguments of each end.

    :param front: the machine whose door is held meanwhile.
    :param old: where it runs.
    :param new: where it goes.
    :param leave: arguments of ``synapse_move.leave`` on ``old``.
    :param arrive: arguments of ``synapse_move.arrive`` on ``new``.
    :param old_url: base URL on ``old``, for the way back.
    :param old_target: the door's target for it.
    :param new_target: the door's target for the new place.
    """

    front: str
    old: str
    new: str
    leave: Mapping[str, Any]
    arrive: Mapping[str, Any]
    old_url: str
    old_target: str
    new_target: str


def handover(cmap: Map) -> Handover:
    """The move of M2: from the legacy machine to Synapse's own.

    :raises KeyError: when the proxy or Synapse's machine is not declared.
    """
    old = cmap["legacy"]["minion"]
    new, front = clustermap.the_machine(cmap, "synapse"), clustermap.the_machine(cmap, "proxy")
    if new is None or front is None:
        raise KeyError("machines with the roles synapse and proxy")
    database = cmap["synapse"]["database"]
    pulls = [
        {**row, "host": clustermap.address(cmap, old), "key": f"{TRANSFER_DIR}/{name}.key"}
        for name, row in sorted(transfers(cmap).items())
    ]
    leave: dict[str, Any] = {"service": SERVICE, "ports": [PORT]}
    arrive: dict[str, Any] = {
        "service": SERVICE,
        "url": f"http://{endpoint(clustermap.address(cmap, new), PORT)}",
        "pulls": pulls,
    }
    if database["engine"] == "sqlite3":
        leave["sqlite"] = {"source": database["path"], "directory": HANDOVER_DIR}
        arrive["sqlite"] = {"directory": HANDOVER_DIR, "destination": SQLITE_PATH, "user": USER}
    return Handover(
        front=front,
        old=old,
        new=new,
        leave=leave,
        arrive=arrive,
        old_url=f"http://127.0.0.1:{PORT}",
        old_target="legacy",
        new_target="synapse",
    )


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
        "port": _dsn_port(database),
    }
    if not at_home:
        args["host"] = clustermap.address(cmap, cmap["legacy"]["minion"])
        args["port"] = _dsn_port(database) + RELAY_OFFSET
        args["sslmode"] = "require"
    return {"name": "psycopg2", "args": {k: v for k, v in args.items() if v is not None}}


def _dsn_host(database: Mapping[str, Any]) -> str:
    return str(database.get("host") or "127.0.0.1")


def _dsn_port(database: Mapping[str, Any]) -> int:
    return int(database.get("port") or 5432)


def _relay(here: str, host: str, port: int, allow: str) -> dict[str, Any]:
    target = "127.0.0.1" if host == "localhost" else host
    return {
        "listen": endpoint(here, port + RELAY_OFFSET),
        # Never in brackets: systemd-socket-proxyd takes what is before the last colon as it is.
        "target": f"{target}:{port}",
        "allow": [allow],
    }


def endpoint(address: str, port: int) -> str:
    """Address and port as URLs and systemd's ListenStream have them: IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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


def port_key(host_key: str) -> str:
    """The key that holds the port of a bare host: ``smtp_port`` beside ``smtp_host``."""
    return f"{host_key.removesuffix('host')}port" if host_key.endswith("host") else "port"
