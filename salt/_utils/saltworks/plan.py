"""The plan: from what is declared and where things stand to each machine's slice.

A pure function of the cluster map, the placement and a way to look up secrets;
everything derived (configuration, upstreams, relays, who may talk to whom) comes
from here and is rendered by the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import clustermap, modules
from .clustermap import Map
from .membership import DATABASE
from .registry import Member

#: Ports of the managed Synapse: all requests, and the long polls apart, so that
#: requests in flight can be counted without them (see formulas/nginx/README.md).
PORT = 8008
POLL_PORT = 8009

#: Where the main process listens to its workers, and where Redis does.
MAIN_REPLICATION_PORT = 9093
REDIS_PORT = 6379
#: Synapse's account in Redis.
REDIS_USER = "synapse"

#: A relay of the legacy machine listens this far above the port it relays to,
#: because the service itself may hold the port on every address.
RELAY_OFFSET = 10000

CONFIG_DIR = "/etc/synapse"
#: Where libpq finds the database: read for each new connection, so that its machines come and go
#: without a restart of Synapse (PostgreSQL's documentation, "The Connection Service File").
SERVICE_FILE = f"{CONFIG_DIR}/pg_service.conf"
DATABASE_SERVICE = "synapse"
#: Where the module for standby reads finds standbys; it looks again when that changes.
STANDBYS_FILE = f"{CONFIG_DIR}/standbys.json"
DATA_DIR = "/var/lib/synapse"
MEDIA_DIR = f"{DATA_DIR}/media_store"
SQLITE_PATH = f"{DATA_DIR}/homeserver.db"
HANDOVER_DIR = "/var/lib/saltworks/handover"
TRANSFER_DIR = "/etc/saltworks/transfer"
#: Name of the project's authority among those that Synapse trusts, and its file.
AUTHORITY = "saltworks"
AUTHORITY_FILE = f"{CONFIG_DIR}/certificates/{AUTHORITY}.pem"
SERVICE = "synapse"
#: Synapse's account where it is ours to choose; on the legacy machine it is the one found.
USER = "synapse"
RELEASES_DIR = "/opt/synapse/releases"
ARTIFACTS_DIR = "/srv/saltworks-artifacts/releases"

#: Modules that Synapse loads beside its release; its unit names the folder from the first day,
#: so that what is put there needs no other unit.
PLUGINS_DIR = "/opt/saltworks/plugins"
#: Variables of Synapse's units, all from the first day: a change of them is a restart.
UNIT_ENVIRONMENT: Mapping[str, str] = {"PYTHONPATH": PLUGINS_DIR, "PGSERVICEFILE": SERVICE_FILE}

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Secrets = Callable[[str], str]


@dataclass(frozen=True)
class Placement:
    """Which machine serves what, as far as the milestones have come.

    Each of ``saltworks.parts.PARTS`` has a field of its name.

    :param synapse: id of the machine on which Synapse runs.
    :param managed: whether it is our release there, or still the one found.
    :param front: id of the machine whose nginx takes the clients' requests.
    :param retired: whether the legacy machine's chat site has been taken away.
    :param moving: Synapse is between two machines, or stopped while what it depends on moves:
        until that is over, no state run starts or stops it anywhere, or opens the door.
    :param database: id of the machine that the database was moved to; empty: as found.
    :param media: the same for the media store.
    :param auth: the same for the password auth provider's backend.
    :param upcoming: what is about to move, part to machine id (empty: back to where it was
        found): Synapse's configuration for then lies beside the one in use.
    :param held: the part for which Synapse is, or was, stopped in a short window before its copy.
    :param given_up: parts whose place as found is retired for good.
    :param redis: id of the machine through which Synapse's processes hear of each other; empty:
        there is one process, and no worker.
    :param dcs: etcd runs on the machines of its role.
    :param clustered: PostgreSQL is run by Patroni, and its machines are members.
    :param members: the registry's; not part of the record.
    :param telling: members of whom others are being told, who wait behind the shut door; until
        that is over no state run opens it. Not part of the record either.
    :param stopped: machines on which Synapse stays stopped meanwhile, until the registry says
        the new.
    """

    synapse: str
    managed: bool
    front: str
    retired: bool = False
    moving: bool = False
    database: str = ""
    media: str = ""
    auth: str = ""
    upcoming: Mapping[str, str] = field(default_factory=dict)
    held: str = ""
    given_up: tuple[str, ...] = ()
    redis: str = ""
    dcs: bool = False
    clustered: bool = False
    members: tuple[Member, ...] = ()
    telling: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()

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
            database=str(row.get("database", "")),
            media=str(row.get("media", "")),
            auth=str(row.get("auth", "")),
            upcoming=dict(row.get("upcoming", {})),
            held=str(row.get("held", "")),
            given_up=tuple(row.get("given_up", ())),
            redis=str(row.get("redis", "")),
            dcs=bool(row.get("dcs", False)),
            clustered=bool(row.get("clustered", False)),
        )

    def next(self) -> Placement:
        """The placement once what is about to move has moved."""
        changes: dict[str, Any] = {**self.upcoming, "upcoming": {}}
        return replace(self, **changes)


@dataclass(frozen=True)
class Backend:
    """Where nginx reaches Synapse."""

    address: str
    port: int
    poll_port: int

    def as_pillar(self) -> dict[str, Any]:
        return {"address": self.address, "port": self.port, "poll_port": self.poll_port}


#: Longer than a long poll: then every client has been told to come back anew.
ANNOUNCE_SECONDS = 31


def announce_seconds(cmap: Map) -> int:
    """For how long clients are told, before the door closes, to come back on new connections."""
    return int(cmap.get("front_door", {}).get("announce_seconds", ANNOUNCE_SECONDS))


def drain_port(cmap: Map, placement: Placement) -> int:
    """The port whose established connections are the requests in flight."""
    return PORT if placement.managed else cmap["legacy"]["listener"]["port"] + RELAY_OFFSET


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
            rows[name] = relay(here, "127.0.0.1", port, clustermap.address(cmap, proxy))
    if synapse:
        allow = clustermap.address(cmap, synapse)
        database = cmap["synapse"]["database"]
        if database["engine"] == "psycopg2" and "database" not in placement.given_up:
            rows["postgresql"] = relay(here, dsn_host(database), dsn_port(database), allow)
        directories = {found.path for found in modules.directories(cmap)}
        for row in cmap["synapse"].get("loopback", []):
            if "auth" in placement.given_up and row["path"] in directories:
                continue
            rows[f"loopback-{row['port']}"] = relay(here, row["host"], row["port"], allow)
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
        "cluster": {"port": dsn_port(database)},
    }


def worker_sources(cmap: Map, placement: Placement) -> list[str]:
    """Addresses and networks from which workers ask others: database, Redis, the main process.

    As declared, not as registered: who comes or goes changes no other machine's rules.
    """
    if not placement.redis:
        return []
    declared = [clustermap.address(cmap, name) for name in clustermap.machines_of(cmap, "worker")]
    return [*declared, *cmap.get("worker_networks", [])]


def database_sources(cmap: Map, placement: Placement) -> list[str]:
    """Addresses of the cluster's machines: on which PostgreSQL runs, or is about to.

    As registered, not as declared: one that is gone and boots again must reach nobody, or it might
    lead with what it had when it went.
    """
    return [
        row.address or clustermap.address(cmap, row.minion)
        for row in sorted(placement.members, key=lambda row: row.minion)
        if row.kind == DATABASE and row.state != "gone"
    ]


def dsn_host(database: Mapping[str, Any]) -> str:
    """Host of the database as found, as Synapse's machine saw it."""
    return str(database.get("host") or "127.0.0.1")


def dsn_port(database: Mapping[str, Any]) -> int:
    """Port of the database as found."""
    return int(database.get("port") or 5432)


def relay(here: str, host: str, port: int, allow: str) -> dict[str, Any]:
    """A relay's row: from ``here``, ``RELAY_OFFSET`` above the port, for one address."""
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


def port_key(host_key: str) -> str:
    """The key that holds the port of a bare host: ``smtp_port`` beside ``smtp_host``."""
    return f"{host_key.removesuffix('host')}port" if host_key.endswith("host") else "port"
