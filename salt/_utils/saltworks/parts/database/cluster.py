"""M4, part database: PostgreSQL's machines as one cluster, which Patroni runs.

From then on they are members of the registry, the first one too: which of them is the primary,
Patroni knows and the plan does not. Nothing here moves, so it is no :class:`saltworks.parts.Part`.
Pure, like the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import backups, clustermap
from ...clustermap import Map
from ...errors import Problem
from ...meeting import Check
from ...membership import DATABASE
from ...plan import DATABASE_SERVICE, Placement, Secrets, database_sources, worker_sources
from .. import media
from ..model import Ask, errors
from . import backup
from .common import CLUSTER, NAME, PORT, database, is_there, network, replication

MILESTONE = "m4.database"
#: Synapse's processes look the database up by its service's name from M4.workers on.
AFTER = ("m4.workers",)
ROLE = DATABASE
DCS = "dcs"

#: Made with the first machine's certificate: name to length in letters.
SECRETS: Mapping[str, int] = {"database_rewind_password": 40, **backup.SECRETS}

#: By which Patroni brings an old primary back to a new one's timeline.
REWIND = "saltworks_rewind"

#: Patroni's own API, and etcd's ports for clients and for each other.
API_PORT, ETCD_PORT, ETCD_PEER_PORT = 8008, 2379, 2380

#: States of a member that serves, by Patroni's API.
RUNNING = ("running", "streaming")

#: How long a state run waits for a first copy, in seconds. The copy goes on by itself: a join that
#: found it unfinished is tried again.
COPY_SECONDS = 300

#: Patroni's default (``maximum_lag_on_failover``), in bytes of WAL.
LAG_BYTES = 1 << 20

#: How long libpq waits for one machine, and for an answer on a connection that stands, in seconds:
#: so long is a process stuck with a primary that has vanished.
CONNECT_SECONDS, ANSWER_SECONDS = 3, 5


def running(placement: Placement) -> tuple[str, ...]:
    """Machines on which PostgreSQL runs, or is about to."""
    if not placement.clustered:
        found = placement.database or placement.upcoming.get(NAME, "")
        return (found,) if found else ()
    return _members(placement, "joining", "ready", "draining")


def serving(placement: Placement) -> tuple[str, ...]:
    """Machines that Synapse may find its database on."""
    return _members(placement, "ready") if placement.clustered else running(placement)


def service(placement: Placement) -> dict[str, dict[str, str]]:
    """What libpq is to know of the database's place, by the name of its service.

    Only a primary takes writes, so it does not matter in which order they stand
    (PostgreSQL's documentation, ``target_session_attrs``).
    """
    hosts = serving(placement) if placement.redis or "redis" in placement.upcoming else ()
    if not hosts:
        return {}
    answer = str(ANSWER_SECONDS)
    return {
        DATABASE_SERVICE: {
            "host": ",".join(hosts),
            "port": ",".join(str(PORT) for _ in hosts),
            "target_session_attrs": "read-write",
            "connect_timeout": str(CONNECT_SECONDS),
            # A machine that has vanished says nothing: TCP has to notice it.
            "keepalives_idle": answer,
            "keepalives_interval": "1",
            "keepalives_count": answer,
            "tcp_user_timeout": str(1000 * ANSWER_SECONDS),
        }
    }


def standbys(cmap: Map, placement: Placement) -> list[dict[str, Any]]:
    """Where standbys may be: all of the cluster's machines, as each may be one tomorrow."""
    if not (placement.clustered and clustermap.standby_reads(cmap)):
        return []
    return [{"host": name, "port": PORT} for name in serving(placement)]


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """Slice of a database machine once the cluster is there, or is none of it."""
    if minion not in running(placement):
        at = {"cluster": CLUSTER}
        states = ["base", "patroni.absent", "postgres.absent", "pgbackrest.absent"]
        return {
            "states": [*states, "firewall.absent"], "postgres": at, "patroni": at,
        }  # fmt: skip
    name, user = database(cmap)
    client = clustermap.the_machine(cmap, "synapse")
    sources = [clustermap.address(cmap, client)] if client else []
    sources += worker_sources(cmap, placement)
    peers = _addresses(cmap, placement)
    words = cmap["database"]
    certificate = _certificate(minion, secret)
    return {
        # A standby's PostgreSQL asks the store for WAL from its first moment, and ends without the
        # program.
        "states": [
            *("base", "firewall", "postgres.installed", "pgbackrest.configured"),
            *("patroni", "pgbackrest"),
        ],
        "firewall": {"ports": {PORT: [*sources, *peers], API_PORT: peers}},
        "postgres": {
            "cluster": CLUSTER,
            "listen": [clustermap.address(cmap, minion)],
            "port": PORT,
            "certificate": certificate,
            "replication": replication(secret),
            "scope": cmap["name"],
            "database": name,
            "archive": backups.archive_settings(placement.media, media.PORT),
        },
        "pgbackrest": backup.pillar(cmap, placement, secret),
        "patroni": {
            "scope": cmap["name"],
            "name": minion,
            "address": clustermap.address(cmap, minion),
            "port": PORT,
            "api_port": API_PORT,
            "cluster": CLUSTER,
            "etcd": {"hosts": [f"{each}:{ETCD_PORT}" for each in watchers(cmap)]},
            "certificate": certificate,
            # Whose server the cluster is made of, while there is none yet.
            "adopts": minion == placement.database,
            "copied_within": COPY_SECONDS,
            # Synapse looks nowhere else.
            "may_lead": minion in serving(placement),
            "durability": words["durability"],
            "maximum_lag_on_failover": words.get("maximum_lag_on_failover", LAG_BYTES),
            "replication": replication(secret),
            "rewind": {"role": REWIND, "password": secret("database_rewind_password")},
            "admits": [
                {"database": name, "user": user, "address": network(each)} for each in sources
            ],
            "peers": [network(each) for each in peers],
            "reads_by": user if clustermap.standby_reads(cmap) else "",
        },
    }


def dcs(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """Slice of a machine of etcd."""
    if not placement.dcs:
        return {"states": ["base", "etcd.absent", "firewall.absent"]}
    peers = {each: clustermap.address(cmap, each) for each in watchers(cmap)}
    return {
        # The firewall first: from its first moment etcd listens to nobody else.
        "states": ["base", "firewall", "etcd"],
        "firewall": {
            "ports": {
                ETCD_PORT: [*_addresses(cmap, placement), *peers.values()],
                ETCD_PEER_PORT: [*peers.values()],
            }
        },
        "etcd": {
            "name": minion,
            "address": peers[minion],
            "peers": peers,
            "token": cmap["name"],
            "certificate": _certificate(minion, secret),
        },
    }


def watchers(cmap: Map) -> list[str]:
    """The machines of etcd."""
    return clustermap.machines_of(cmap, DCS)


def gates(cmap: Map, placement: Placement) -> list[str]:
    """Machines that let a database in, or no more, beside the others of the cluster."""
    return [*watchers(cmap), *([placement.media] if placement.media else [])]


def neighbours(cmap: Map, placement: Placement) -> list[str]:
    """Machines that are told of a database's coming and going, beside Synapse's."""
    return [*gates(cmap, placement), *running(placement)] if placement.clustered else []


def watcher(name: str, status: Mapping[str, Any]) -> str:
    """A machine of etcd in one word, or what is wrong with it.

    :param status: its ``etcd_member.status``, or ``{"error": text}``.
    """
    if "error" in status:
        return str(status["error"])
    if not status.get("healthy"):
        return "knows no leader"
    return "leads" if status.get("leader") == name else "follows"


def begin_problems(placement: Placement) -> list[Problem]:
    """Why the cluster may not begin as things stand."""
    name = f"milestone {MILESTONE}"
    found = []
    if placement.moving or placement.upcoming:
        what = "something is about to move, or a run has died in its window"
        found.append(Problem(name, what, "salt-run milestone.status; run that milestone again"))
    if not placement.database:
        what = "the database has not moved to a machine of its own"
        found.append(Problem(name, what, "run salt-run state.orchestrate orch.m3.database first"))
    return found


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """What the precheck asks of machines, as :meth:`saltworks.parts.Part.questions`."""
    if placement.clustered or not placement.database:
        return {}
    ports = [ETCD_PORT, ETCD_PEER_PORT]
    rows = {
        "primary": Ask(placement.database, "pgstandby.status", {"cluster": CLUSTER}),
        "api": Ask(placement.database, "machine_facts.read", {"ports": [API_PORT]}),
    }
    if not placement.dcs:
        rows.update({
            f"dcs {name}": Ask(name, "machine_facts.read", {"ports": ports})
            for name in watchers(cmap)
        })  # fmt: skip
    return rows


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """What speaks against the cluster, beside :func:`begin_problems`.

    :param told: by the name of the question, its answer or ``{"error": text}``.
    """
    found = begin_problems(placement)
    if is_there(cmap, placement) and NAME not in placement.given_up:
        what = "the old machine's cluster still follows, by a slot that Patroni would drop"
        do = "salt-run milestone.arm m3.database.finalize, then orch.m3.database.finalize"
        found.append(Problem("milestone m3.database", what, do))
    asked = questions(cmap, placement)
    for key, ask in asked.items():
        answer = told.get(key, {})
        if "error" in answer:
            look = "see the salt-minion's log there"
            found.append(Problem(ask.machine, str(answer["error"]), look))
            continue
        for row in answer.get("listeners", ()):
            if row["port"] in ask.kwargs["ports"]:
                by = row["unit"] or row["program"] or "the kernel"
                what = f"port {row['port']} is held by {by}"
                found.append(Problem(ask.machine, what, "stop that service there"))
    primary = told.get("primary", {})
    if "primary" in asked and "error" not in primary and not _serves(primary):
        what = f"its PostgreSQL is no primary that serves: {dict(primary)}"
        do = "see pg_lsclusters and PostgreSQL's log there"
        found.append(Problem(placement.database, what, do))
    return found


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """What the verdict asks of machines, as :meth:`saltworks.parts.Part.proofs`."""
    if not placement.clustered:
        return {}
    rows = {f"dcs {name}": Ask(name, "etcd_member.status") for name in watchers(cmap)}
    rows.update({name: Ask(name, "patroni.status") for name in serving(placement)})
    name, _ = database(cmap)
    for each in serving(placement):
        words = {"cluster": CLUSTER, "database": name}
        rows[f"sessions {each}"] = Ask(each, "pgadmit.sessions", words)
    return rows


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """The verdict on the answers to :func:`proofs`."""
    if not placement.clustered:
        return [Check("database cluster", False, "no machine is recorded as one of a cluster")]
    return [_dcs_check(cmap, told), _cluster_check(placement, told), _client_check(cmap, told)]


def leader(status: Mapping[str, Any]) -> str:
    """The primary by ``patroni.status``, empty while there is none."""
    return str(status.get("leader") or "")


def standbys_left(placement: Placement) -> list[str]:
    """Members that have to leave before there is no cluster any more."""
    return [name for name in running(placement) if name != placement.database]


def leave_problems(
    placement: Placement, minion: str, status: Mapping[str, Any]
) -> list[Problem]:
    """Why a machine cannot leave as things stand.

    :param status: ``patroni.status``.
    """
    others = [name for name in serving(placement) if name != minion]
    if not others:
        do = "let another one join first; the last one goes with orch.m4.database.rollback"
        return [Problem(minion, "is the last database in service", do)]
    if not leader(status):
        do = "salt-run database.status; nothing is done until there is one"
        return [Problem(minion, "there is no primary now", do)]
    if status.get("dcs"):
        do = "salt-run database.status; nobody can take over, nor leave, until it does"
        return [Problem(minion, "etcd does not answer", do)]
    if status.get("durability") == "sync-strict" and len(others) < 2:
        what = "is the one standby without which sync-strict takes no write"
        do = "write async in the map, apply the primary's role, then drain it"
        return [Problem(minion, what, do)]
    return []


def return_problems(placement: Placement) -> list[Problem]:
    """Why there is no way back from the cluster as things stand."""
    do = "salt-run worker.drain {} first"
    return [
        Problem(name, "is a machine of the database's cluster", do.format(name))
        for name in standbys_left(placement)
    ]


def _members(placement: Placement, *states: str) -> tuple[str, ...]:
    return tuple(
        row.minion
        for row in sorted(placement.members, key=lambda row: row.minion)
        if row.kind == DATABASE and row.state in states
    )


def _addresses(cmap: Map, placement: Placement) -> list[str]:
    """Addresses of the machines on which PostgreSQL runs."""
    if placement.clustered:
        return database_sources(cmap, placement)
    return [clustermap.address(cmap, name) for name in running(placement)]


def _certificate(minion: str, secret: Secrets) -> dict[str, str]:
    return {
        "crt": secret(f"pki_{minion}"),
        "key": secret(f"pki_{minion}_key"),
        "authority": secret("pki_authority"),
    }


def _serves(status: Mapping[str, Any]) -> bool:
    return status.get("condition") == "ready" and not status.get("recovery", True)


def _dcs_check(cmap: Map, told: Mapping[str, Any]) -> Check:
    rows = {name: told.get(f"dcs {name}", {"error": "was not asked"}) for name in watchers(cmap)}
    wrong = [
        f"{name}: {row.get('error') or 'does not serve'}"
        for name, row in rows.items()
        if not row.get("healthy")
    ]
    leaders = {str(row.get("leader")) for row in rows.values() if row.get("healthy")}
    if len(leaders) > 1:
        wrong.append(f"they name different leaders: {', '.join(sorted(leaders))}")
    said = f"{len(rows)} of {len(rows)} serve, {', '.join(leaders)} leads"
    return Check("etcd", not wrong, "; ".join(wrong) or said)


def _cluster_check(placement: Placement, told: Mapping[str, Any]) -> Check:
    rows = {name: told.get(name, {"error": "was not asked"}) for name in serving(placement)}
    if wrong := errors(rows):
        return Check("database cluster", False, "; ".join(wrong))
    leaders = {leader(row) for row in rows.values()}
    if len(leaders) != 1 or "" in leaders:
        words = ", ".join(f"{name} says {leader(row) or 'nobody'}" for name, row in rows.items())
        return Check("database cluster", False, f"who is the primary: {words}")
    (first,) = leaders
    known = rows[first]["members"] if first in rows else {}
    states = {name: known.get(name, {}).get("state", "unknown") for name in rows}
    away = {name: state for name, state in states.items() if state not in RUNNING}
    said = f"{first} is the primary of {len(rows)} machines"
    if not known:
        return Check("database cluster", False, f"{first} is the primary and no member")
    if rows[first].get("pause"):
        do = f"nobody takes over while it is paused: salt {first} patroni.resume"
        return Check("database cluster", False, f"{said}: {do}")
    if away:
        words = ", ".join(f"{name} is {state}" for name, state in away.items())
        return Check("database cluster", False, f"{said}: {words}")
    return Check("database cluster", True, said)


def _client_check(cmap: Map, told: Mapping[str, Any]) -> Check:
    client = clustermap.address(cmap, clustermap.the_machine(cmap, "synapse") or "")
    rows = {key.partition(" ")[2]: row for key, row in told.items() if key.startswith("sessions ")}
    ours = {
        name: [each for each in row.get("sessions", []) if each["client"] == client]
        for name, row in rows.items()
    }
    bare = sum(not each["ssl"] for found in ours.values() for each in found)
    seen = {name: len(found) for name, found in ours.items() if found}
    words = ", ".join(f"{count} on {name}" for name, count in seen.items()) or "none"
    return Check("new database", bool(seen) and not bare, f"connections of Synapse: {words}")
