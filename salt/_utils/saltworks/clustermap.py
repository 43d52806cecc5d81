"""The cluster map: what the operator declares, and every way it can be wrong.

The map is ``pillar/cluster.sls``; its shape is ``pillar/schema/cluster.schema.json``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from .errors import Problem
from .worker_table import table

#: Roles of which a cluster has exactly one machine at this stage.
SINGLE_ROLES = (
    "legacy",
    "master",
    "proxy",
    "synapse",
    "storage",
    "directory",
    "redis",
)

#: How many machines of etcd there may be: an even number survives no more deaths than one less
#: (etcd's FAQ, "Why an odd number of cluster members?").
QUORUMS = (1, 3, 5)

Map = Mapping[str, Any]


def schema(path: Path) -> dict[str, Any]:
    """Read the JSON schema of the cluster map.

    :param path: ``pillar/schema/cluster.schema.json`` of the tree in use.
    :raises OSError: when it cannot be read.
    """
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def problems(
    cmap: Any,
    map_schema: Mapping[str, Any],
    *,
    minions: Collection[str] | None = None,
    secrets: Collection[str] | None = None,
) -> list[Problem]:
    """Everything wrong with a cluster map, all at once.

    :param cmap: the value of the top key ``cluster``.
    :param map_schema: see :func:`schema`.
    :param minions: ids whose keys the master has accepted; None: not checked.
    :param secrets: names of the secrets at hand; None: not checked.
    """
    validator = Draft202012Validator(dict(map_schema))
    found = [_from_schema(error) for error in validator.iter_errors(cmap)]
    if found or not isinstance(cmap, Mapping):
        return found
    found += _roles(cmap)
    found += _addresses(cmap)
    found += _workers(cmap)
    found += _databases(cmap)
    if minions is not None:
        found += _unknown_minions(cmap, minions)
    if secrets is not None:
        found += _missing_secrets(cmap, secrets)
    return found


def machines_of(cmap: Map, role: str) -> list[str]:
    """Ids of the machines declared with a role, sorted."""
    return sorted(name for name, row in cmap["machines"].items() if row["role"] == role)


def the_machine(cmap: Map, role: str) -> str | None:
    """Id of the one machine of a single role, or None when none is declared.

    Of ``database`` the first: the one that M3 moves the database to.
    """
    if role == "database" and (first := cmap.get("database", {}).get("first")):
        return str(first)
    return next(iter(machines_of(cmap, role)), None)


def standby_reads(cmap: Map) -> bool:
    """Whether workers whose kind allows it are to read from standbys of the database."""
    return bool(cmap.get("database", {}).get("standby_reads", False))


def address(cmap: Map, minion: str) -> str:
    """Address of a declared machine."""
    return str(cmap["machines"][minion]["address"])


def at(cmap: Map, ip: str) -> str:
    """Id of the declared machine with an address, empty when none has it."""
    return next((name for name, row in cmap["machines"].items() if row["address"] == ip), "")


def secret_names(value: Any) -> Iterator[str]:
    """Names of all ``{"secret": name}`` references in a value."""
    if isinstance(value, Mapping):
        if set(value) == {"secret"} and isinstance(value["secret"], str):
            yield value["secret"]
            return
        for item in value.values():
            yield from secret_names(item)
    elif isinstance(value, list):
        for item in value:
            yield from secret_names(item)


def needed_secrets(cmap: Map) -> set[str]:
    """Secrets without which the homeserver would not be the same server."""
    return {"signing_key", "tls_certificate", "tls_key", *secret_names(cmap)}


def _place(error: ValidationError) -> str:
    return ".".join(["cluster", *(str(step) for step in error.absolute_path)])


def _from_schema(error: ValidationError) -> Problem:
    place = _place(error)
    if error.validator == "additionalProperties":
        return Problem(place, error.message, "remove the key or correct its name")
    if error.validator == "required":
        return Problem(
            place, error.message, "add it; pillar/schema/cluster.schema.json has every key"
        )
    wanted = error.schema.get("description") if isinstance(error.schema, dict) else None
    return Problem(
        place, error.message, wanted or "see the schema, pillar/schema/cluster.schema.json"
    )


def _roles(cmap: Map) -> Iterator[Problem]:
    for role in SINGLE_ROLES:
        held = machines_of(cmap, role)
        if len(held) > 1:
            yield Problem(
                "cluster.machines",
                f"role {role} is given to {len(held)} machines: {', '.join(held)}",
                f"leave {role} with one of them",
            )
    if not machines_of(cmap, "legacy"):
        yield Problem(
            "cluster.machines",
            "no machine has the role legacy",
            "run salt-run adopt.homeserver <minion> for the server as it stands",
        )


def _addresses(cmap: Map) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, row in sorted(cmap["machines"].items()):
        place = f"cluster.machines.{name}.address"
        try:
            ip_address(row["address"])
        except ValueError:
            yield Problem(place, f"{row['address']!r} is no IP address", "write one")
            continue
        if other := seen.get(row["address"]):
            yield Problem(place, f"{row['address']} is {other}'s address too", "give each its own")
        seen[row["address"]] = name


def _workers(cmap: Map) -> Iterator[Problem]:
    """What the schema cannot say of workers: their kinds, their networks, what they need."""
    known = ", ".join(table().kinds)
    declared = machines_of(cmap, "worker")
    kinds = {f"machines.{name}.kind": cmap["machines"][name]["kind"] for name in declared}
    kinds.update({f"workers.{kind}": kind for kind in cmap.get("workers", {})})
    for place, kind in sorted(kinds.items()):
        if kind not in table().kinds:
            yield Problem(f"cluster.{place}", f"{kind!r} is no kind of worker", f"one of {known}")
    for index, network in enumerate(cmap.get("worker_networks", [])):
        try:
            ip_network(network)
        except ValueError as error:
            place = f"cluster.worker_networks.{index}"
            yield Problem(place, f"{error}", "write a network such as 198.18.0.0/24")
    if kinds and not machines_of(cmap, "redis"):
        what = "there are workers, and no machine has the role redis, through which they hear"
        yield Problem("cluster.machines", what, "declare one")


def _databases(cmap: Map) -> Iterator[Problem]:
    """What the schema cannot say of the database's machines, and of those that watch them."""
    held, watchers = machines_of(cmap, "database"), machines_of(cmap, "dcs")
    words = cmap.get("database", {})
    first = words.get("first", "")
    if first and first not in held:
        what = f"{first!r} is no machine with the role database"
        yield Problem("cluster.database.first", what, f"one of {', '.join(held) or 'none so far'}")
    elif len(held) > 1 and not first:
        what = f"role database is given to {len(held)} machines: {', '.join(held)}"
        do = "write which one M3 moves the database to; the others join it with M4"
        yield Problem("cluster.database.first", what, do)
    if not watchers:
        return
    if len(watchers) not in QUORUMS:
        what = f"role dcs is given to {len(watchers)} machines: {', '.join(watchers)}"
        yield Problem("cluster.machines", what, "leave it with 1, 3 or 5 of them")
    if "durability" not in words:
        what = "there are machines of the role dcs, and nothing says what a failover may lose"
        do = "write async, sync or sync-strict; docs/database-cluster.md says what each promises"
        yield Problem("cluster.database.durability", what, do)
    if words.get("durability") == "sync-strict" and len(held) < 2:
        what = "sync-strict takes no write without a standby, and only one database is declared"
        yield Problem("cluster.database.durability", what, "declare another, or write sync")


def _unknown_minions(cmap: Map, minions: Collection[str]) -> Iterator[Problem]:
    for name in sorted(set(cmap["machines"]) - set(minions)):
        yield Problem(
            f"cluster.machines.{name}",
            f"no accepted minion has the id {name}",
            f"correct the id, or start the minion and run salt-key -a {name}",
        )


def _missing_secrets(cmap: Map, secrets: Collection[str]) -> Iterator[Problem]:
    for name in sorted(needed_secrets(cmap) - set(secrets)):
        yield Problem(
            "pillar/secrets.sls",
            f"the secret {name} is missing",
            f"salt-run secret.put {name} <file>, or run adopt.homeserver again",
        )
