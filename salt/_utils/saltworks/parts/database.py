"""M3, part database: PostgreSQL on a machine of its own.

From PostgreSQL of the same major version: the new machine's cluster is a standby of the one
found, until the window turns them round; from then on the old one follows, until it is given
up (``salt/_modules/saltworks_pgstandby.py``). From SQLite: one pass of ``synapse_port_db`` in the
window, into a target made for it (``salt/_modules/synapse_port.py``); from there is no way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import clustermap
from ..clustermap import Map
from ..errors import Problem
from ..meeting import Check
from ..plan import (
    AUTHORITY,
    AUTHORITY_FILE,
    CONFIG_DIR,
    LOOPBACK,
    RELAY_OFFSET,
    RELEASES_DIR,
    SQLITE_PATH,
    USER,
    Placement,
    Secrets,
    dsn_host,
    dsn_port,
    relay,
)
from .model import Ask, Steps

NAME = "database"
ROLE = "database"
COPIES_ON = "database"
COPIES_BACK_ON = "legacy"
SECRETS: Mapping[str, int] = {"database_password": 40, "database_replication_password": 40}
KEY_PAIRS: tuple[str, ...] = ()

#: Debian's, of which the new machine's cluster is.
MAJOR = 15
CLUSTER = f"{MAJOR}/main"
DATA_DIR = "/var/lib/postgresql"
DEBIAN = "12"
PORT = 5432

#: By which the clusters copy each other, and what keeps WAL for the other one.
REPLICATION = "saltworks_replication"
SLOT = "saltworks_standby"


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    return ""


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`."""
    name, user = _database(cmap)
    args = {
        **cmap["synapse"]["database"].get("args", {}),
        "database": name,
        "user": user,
        "password": {"secret": "database_password"},
        "host": placement.database,
        "port": PORT,
        "sslmode": "verify-full",
        "sslrootcert": AUTHORITY_FILE,
    }
    config["database"] = {"name": "psycopg2", "args": args}


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    upcoming = placement.upcoming.get(NAME) == minion
    if not upcoming and placement.database != minion:
        return {"states": ["base", "postgres.absent"], "postgres": {"cluster": CLUSTER}}
    legacy = cmap["legacy"]["minion"]
    here = clustermap.address(cmap, minion)
    name, user = _database(cmap)
    client = clustermap.the_machine(cmap, "synapse")
    admits = [{"database": name, "user": user, "address": _network(cmap, client)}] if client else []
    followed = _is_there(cmap, placement) and NAME not in placement.given_up
    if followed:
        admits.append(
            {"database": "replication", "user": REPLICATION, "address": _network(cmap, legacy)}
        )
    # In the window and before it the cluster is the switch's; afterwards it is to run.
    runs = placement.database == minion and not placement.moving
    return {
        "states": ["base", "firewall", "postgres" if runs else "postgres.configured"],
        "firewall": {"ports": {PORT: [row["address"].partition("/")[0] for row in admits]}},
        "postgres": {
            "cluster": CLUSTER,
            "listen": [here],
            "port": PORT,
            "certificate": {
                "crt": secret(f"pki_{minion}"),
                "key": secret(f"pki_{minion}_key"),
                "authority": secret("pki_authority"),
            },
            "replication": _replication(secret),
            "admits": admits,
            "upstream": {
                "host": legacy,
                "port": dsn_port(cmap["synapse"]["database"]) + RELAY_OFFSET,
                "sslmode": "require",
            }
            if followed and placement.database != minion
            else {},
            "provides": {"owner": user, "password": secret("database_password")}
            if _is_sqlite(cmap) and placement.database != minion
            else {},
            "database": name,
            "slots": [SLOT] if followed else [],
        },
    }


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if not _is_there(cmap, placement):
        return {}
    found: dict[str, Any] = {"cluster": _found(cmap)}
    if NAME in placement.given_up:
        return {"states": ["postgres.absent"], "postgres": found}
    if placement.moving:
        return {}
    machine = clustermap.the_machine(cmap, ROLE)
    if placement.database:
        found.update(
            replication=_replication(secret),
            certificate={"authority": secret("pki_authority")},
            upstream={"host": placement.database, "port": PORT, "sslmode": "verify-full"},
            database=cmap["synapse"]["database"]["name"],
        )
        return {"states": ["postgres.following"], "postgres": found}
    if placement.upcoming.get(NAME) == machine:
        found.update(
            roles={
                REPLICATION: {**_replication(secret), "replication": True},
                # By the same password as before: on the new machine only SCRAM lets it in.
                cmap["synapse"]["database"]["user"]: {"password": secret("database_password")},
            },
            # The relay is where the new machine comes from.
            admits=[{"database": "replication", "user": REPLICATION, "address": "127.0.0.1/32"}],
            slots=[SLOT],
        )
    return {"states": ["postgres.source"], "postgres": found}


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database and not placement.upcoming.get(NAME):
        return {}
    return {"certificates": {AUTHORITY: secret("pki_authority")}}


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    machine, client = (clustermap.the_machine(cmap, role) for role in (ROLE, "synapse"))
    if not _is_there(cmap, placement) or not machine or not client or NAME in placement.given_up:
        return {}
    database = cmap["synapse"]["database"]
    here = clustermap.address(cmap, cmap["legacy"]["minion"])
    row = relay(here, dsn_host(database), dsn_port(database), clustermap.address(cmap, client))
    row["allow"].append(clustermap.address(cmap, machine))
    return {"postgresql": row}


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    if _is_sqlite(cmap):
        return _port_steps(cmap, placement)
    ends = [(cmap["legacy"]["minion"], _found(cmap)), (_machine(cmap), CLUSTER)]
    if placement.database:
        ends.reverse()
    (old, old_cluster), (new, new_cluster) = ends
    database = {"database": cmap["synapse"]["database"]["name"]}
    at_old, at_new = {"cluster": old_cluster}, {"cluster": new_cluster}
    # The promoted one keeps WAL for the other on the way there only: on the way back the
    # new machine's copy is given up.
    there = {"followed": not placement.database}
    return Steps(
        before=(
            Ask(old, "pgstandby.ready", {**at_old, "standby": False}),
            Ask(new, "pgstandby.ready", {**at_new, "standby": True}),
        ),
        act=(
            Ask(old, "pgstandby.fence", {**at_old, **database}),
            Ask(
                new,
                "pgstandby.promote",
                {**at_new, **database, **there},
                given={"fenced": "pgstandby.fence"},
            ),
        ),
        # The new one need not answer: nobody writes there but a Synapse that was stopped.
        undo=(Ask(old, "pgstandby.unfence", at_old),),
    )


def _port_steps(cmap: Map, placement: Placement) -> Steps:
    at = clustermap.the_machine(cmap, "synapse") or ""
    if placement.database:
        # Nothing leads back (no_return), and the file cannot be opened by Synapse.
        return Steps()
    words = {
        "config": f"{CONFIG_DIR}/upcoming.yaml",
        "release": f"{RELEASES_DIR}/{cmap['releases']['synapse']}",
        "sqlite": SQLITE_PATH,
        "user": USER,
    }
    return Steps(
        before=(Ask(at, "synapse_port.prepare", words),),
        act=(Ask(at, "synapse_port.port", words),),
        undo=(Ask(at, "synapse_port.reopen", {"sqlite": SQLITE_PATH, "user": USER}),),
    )


def no_return(cmap: Map, placement: Placement) -> list[Problem]:
    """Why the database cannot go back, though it is not finalized."""
    if not _is_sqlite(cmap) or not placement.database:
        return []
    what = "people have written to PostgreSQL since, and from there no way leads to SQLite"
    return [Problem(NAME, what, "mend what is wrong, and go on")]


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if placement.database or not (_is_there(cmap, placement) or _is_sqlite(cmap)):
        return {}
    machine = _machine(cmap)
    look = {
        "paths": [DATA_DIR],
        "ports": [PORT],
        "trees": [f"{DATA_DIR}/{CLUSTER}"],
    }
    config = {"config": f"{CONFIG_DIR}/homeserver.yaml"}
    return {
        "found": Ask(placement.synapse, "synapse_db.facts", config)
        if _is_sqlite(cmap)
        else Ask(cmap["legacy"]["minion"], "pgadmit.survey", {"cluster": _found(cmap)}),
        "machine": Ask(machine, "machine_facts.read", look),
        "locales": Ask(machine, "locale.list_avail"),
    }


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    if placement.database:
        return []
    sqlite = _is_sqlite(cmap)
    if not sqlite and not _is_there(cmap, placement):
        host = dsn_host(cmap["synapse"]["database"])
        what = f"PostgreSQL is found on {host}, not on the legacy machine itself"
        return [
            Problem(
                "cluster.synapse.database.host",
                what,
                "only a cluster of the legacy machine is moved; leave M3.database out",
            )
        ]
    legacy, machine = cmap["legacy"]["minion"], _machine(cmap)
    keys = {"found": placement.synapse if sqlite else legacy, "machine": machine}
    keys["locales"] = machine
    failed = {key: row["error"] for key, row in told.items() if "error" in row}
    if failed or set(keys) - set(told):
        # A machine that does not answer at all is said elsewhere.
        look = "see pg_lsclusters and the salt-minion's log there"
        return [Problem(keys[key], str(error), look) for key, error in failed.items()]
    found, facts = told["found"], told["machine"]
    if sqlite:
        wrong = _of_sqlite(keys["found"], found)
        # Rows and indexes take more room there than in SQLite's file.
        return wrong + _of_machine(machine, facts, room_for(2 * int(found["bytes"])), [])
    used = {row[kind] for row in found["databases"].values() for kind in ("collate", "ctype")}
    known = {_plain(name) for name in told["locales"]} | {"c", "posix"}
    missing = sorted(name for name in used if _plain(name) not in known)
    return _of_found(cmap, found) + _of_machine(
        machine, facts, room_for(int(found["bytes"])), missing
    )


def _of_sqlite(machine: str, found: Mapping[str, Any]) -> list[Problem]:
    pending = (found["schema"] or {}).get("pending", [])
    if not pending:
        return []
    what = f"background updates still run: {', '.join(pending[:5])}"
    return [Problem(f"{machine}: Synapse's database", what, "wait for their end, then again")]


def _of_found(cmap: Map, found: Mapping[str, Any]) -> list[Problem]:
    """What speaks against copying the cluster found."""
    name = cmap["synapse"]["database"]["name"]
    place = f"{cmap['legacy']['minion']}: PostgreSQL"
    major = int(found["version"]) // 10000
    others = sorted(set(found["databases"]) - {name, "postgres"})
    mine = found["databases"].get(name)
    senders = found["max_wal_senders"] - found["senders"]
    rows = [
        (
            major != MAJOR,
            f"is version {major}, the new machine has {MAJOR}",
            f"bring it to {MAJOR} first (pg_upgradecluster)",
        ),
        (mine is None, f"has no database {name}", "correct synapse.database.name in the map"),
        (
            mine is not None and {mine["collate"], mine["ctype"]} != {"C"},
            f"the database {name} has the locale {mine and mine['collate']}, Synapse wants C",
            "dump it, and restore it into a database with LC_COLLATE and LC_CTYPE C",
        ),
        (
            bool(others),
            f"holds other databases, which would move along: {', '.join(others)}",
            "move them to another cluster (pg_createcluster, pg_dump), or drop them; of M1's "
            "rollbacks: orch.m1.finalize",
        ),
        (found["recovery"], "is a standby", "name the primary's machine in the map"),
        (not found["ssl"], "has ssl off", "ssl = on with certificate and key, then reload"),
        (
            found["wal_level"] == "minimal",
            "has wal_level minimal",
            "set it to replica and restart PostgreSQL",
        ),
        (
            senders < 2,
            f"has max_wal_senders {found['max_wal_senders']}, {found['senders']} in use; 2 needed",
            "raise it and restart PostgreSQL",
        ),
        (
            found["max_slots"] - found["slots"] < 1,
            f"has max_replication_slots {found['max_slots']}, all in use",
            "raise it and restart PostgreSQL, or drop a slot that nobody uses",
        ),
        (
            bool(found["synchronous"]),
            f"has synchronous_standby_names {found['synchronous']!r}: commits could wait for the "
            "new machine",
            "name the standbys that it means",
        ),
        (
            bool(found["tablespaces"]),
            f"has tablespaces: {', '.join(found['tablespaces'].values())}",
            f"ALTER DATABASE {name} SET TABLESPACE pg_default, and drop them",
        ),
        (
            bool(found["extensions"]),
            f"loads libraries that the new machine has not: {', '.join(found['extensions'])}",
            "take them out of shared_preload_libraries and restart PostgreSQL",
        ),
    ]
    return [Problem(place, what, do) for wrong, what, do in rows if wrong]


def _of_machine(
    machine: str, facts: Mapping[str, Any], needed: int, missing: list[str]
) -> list[Problem]:
    """What speaks against the new machine.

    :param needed: bytes.
    :param missing: locales.
    """
    room = facts["free"][DATA_DIR]["bytes"] + facts["trees"][f"{DATA_DIR}/{CLUSTER}"]["bytes"]
    strangers = [
        f"{row['program']} ({row['unit'] or 'no unit'})"
        for row in facts["listeners"]
        if row["unit"] != f"postgresql@{CLUSTER.replace('/', '-')}.service"
    ]
    system = f"{facts['os']['name']} {facts['os']['release']}"
    rows = [
        (
            (facts["os"]["family"], facts["os"]["release"].partition(".")[0]) != ("Debian", DEBIAN),
            f"runs {system}, whose PostgreSQL is not {MAJOR}",
            f"install Debian {DEBIAN} there",
        ),
        (
            room < needed,
            f"{room >> 20} MiB free for {DATA_DIR}, {needed >> 20} MiB needed",
            "make room, or mount a larger file system there",
        ),
        (
            bool(missing),
            f"has not the locales of the cluster's databases: {', '.join(missing)}",
            "add them to /etc/locale.gen and run locale-gen",
        ),
        (
            bool(strangers),
            f"port {PORT} is taken by {', '.join(sorted(set(strangers)))}",
            "stop that service, or give it another port",
        ),
    ]
    return [Problem(machine, what, do) for wrong, what, do in rows if wrong]


def room_for(size: int) -> int:
    """Bytes that a copy of a cluster of ``size`` bytes takes, with the WAL written meanwhile."""
    return size * 12 // 10 + (1 << 30)


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database:
        return {}
    rows = {
        "new": Ask(placement.database, "pgstandby.status", {"cluster": CLUSTER}),
        "sessions": Ask(
            placement.database,
            "pgadmit.sessions",
            {"cluster": CLUSTER, "database": _database(cmap)[0]},
        ),
    }
    if _is_sqlite(cmap):
        at = clustermap.the_machine(cmap, "synapse") or ""
        rows["ported"] = Ask(at, "synapse_port.recorded")
    elif NAME not in placement.given_up:
        legacy, found = cmap["legacy"]["minion"], {"cluster": _found(cmap)}
        rows["old"] = Ask(legacy, "pgstandby.status", found)
        rows["old content"] = Ask(legacy, "pgcontent.measured", found)
        rows["new content"] = Ask(placement.database, "pgcontent.measured", {"cluster": CLUSTER})
    return rows


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.database:
        return []
    there = placement.database
    client = clustermap.address(cmap, clustermap.the_machine(cmap, "synapse") or "")
    sessions = told["sessions"]
    if "error" in told["new"] or "error" in sessions:
        error = told["new"].get("error") or sessions["error"]
        return [Check("new database", False, f"{there}: {error}")]
    rows = sessions["sessions"]
    bare = [row for row in rows if row["client"] == client and not row["ssl"]]
    serves = told["new"]["condition"] == "ready" and not told["new"].get("recovery", True)
    ours = [row for row in rows if row["client"] == client]
    made = [
        Check(
            "new database",
            serves and bool(ours) and not bare,
            f"{there} is {'the' if serves else 'no'} primary, {len(ours)} connections of Synapse, "
            f"{len(ours) - len(bare)} of them by TLS",
        )
    ]
    if _is_sqlite(cmap):
        made.append(_ported(told["ported"]))
    elif NAME not in placement.given_up:
        made += [_old(cmap, told["old"]), _content(told["old content"], told["new content"])]
    return made


def _old(cmap: Map, row: Mapping[str, Any]) -> Check:
    machine = cmap["legacy"]["minion"]
    if "error" in row:
        return Check("old database", False, f"{machine}: {row['error']}")
    follows = bool(row["fenced"] and row.get("recovery") and row.get("receiving") == "streaming")
    words = "follows as a standby, takes no write" if follows else f"does not follow: {dict(row)}"
    return Check("old database", follows, f"{machine} {words}")


def _content(old: Mapping[str, Any], new: Mapping[str, Any]) -> Check:
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


def _ported(row: Mapping[str, Any]) -> Check:
    if "error" in row or not row:
        return Check("content", False, str(row.get("error", "there is no record of a pass")))
    words = f"{row['tables']} tables with {row['rows']} rows are equal, by checksum"
    left_out = f"; {row['dropped']} with a NUL were left out" if row["dropped"] else ""
    return Check("content", not row["different"], words + left_out)


def _is_sqlite(cmap: Map) -> bool:
    return bool(cmap["synapse"]["database"]["engine"] == "sqlite3")


def _is_there(cmap: Map, placement: Placement) -> bool:
    """Whether there is a cluster on the legacy machine that this part may move, as after M2."""
    database = cmap["synapse"]["database"]
    host = dsn_host(database)
    return (
        placement.synapse != cmap["legacy"]["minion"]
        and database["engine"] == "psycopg2"
        and (host in LOOPBACK or host.startswith("/"))
    )


def _database(cmap: Map) -> tuple[str, str]:
    """Name and role of Synapse's database in PostgreSQL; the usual ones where it is SQLite."""
    database = cmap["synapse"]["database"]
    return database.get("name", "synapse"), database.get("user", "synapse_user")


def _found(cmap: Map) -> dict[str, int]:
    """The cluster as found, for ``pgcluster.locate``."""
    return {"port": dsn_port(cmap["synapse"]["database"])}


def _machine(cmap: Map) -> str:
    return clustermap.the_machine(cmap, ROLE) or ""


def _network(cmap: Map, minion: str) -> str:
    address = clustermap.address(cmap, minion)
    return f"{address}/{128 if ':' in address else 32}"


def _replication(secret: Secrets) -> dict[str, str]:
    return {"role": REPLICATION, "password": secret("database_replication_password")}


def _plain(locale: str) -> str:
    """A locale's name as both ``locale -a`` and PostgreSQL would have it."""
    return locale.lower().replace("-", "")
