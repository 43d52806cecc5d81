"""What the prechecks are made of: what a milestone needs, what is asked, what was gathered.

Pure. What each milestone needs stands in :data:`NEEDS`; a further milestone is a further
row there. The cluster map may be bad in any way here: what is well formed in it is used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import clustermap, parts, plan
from .errors import Problem
from .parts.database import cluster

#: Oldest Salt, and the line of long-term support that is meant (design, "Everywhere").
SALT_LINE, SALT_MINIMUM = 3008, 3

#: Of the Python that Salt runs with: the project's modules use what came with it.
SALT_PYTHON = (3, 11)

#: Clocks further apart than this make tokens, logs and the record disagree, in seconds.
CLOCK_SECONDS = 2.0

MIB = 1 << 20

#: Room of an unpacked release with its archive beside it while it is unpacked, in bytes.
RELEASE_BYTES = 600 * MIB

#: Room of what a machine keeps beside the media: its release, logs, and some air.
OWN_BYTES = 1 << 30

#: Units that may hold the ports which a kind of service will take.
HOLDERS = {
    "synapse": ("synapse.service",),
    "nginx": ("nginx.service",),
    "relay": ("init.scope", "saltworks-relay-"),
}


@dataclass(frozen=True)
class Needs:
    """What a milestone needs.

    :param roles: one machine of each.
    :param runs_synapse: roles of machines on which a release is put by this milestone.
    :param upgrades: the found server and its database are upgraded.
    :param serves: role to the kinds of service whose ports must be free there.
    :param receives_media: role of the machine that gets a copy of the media.
    :param alone: role of the machine on which nothing but Synapse may serve.
    :param leaves_database: Synapse goes where the database is reached over the network.
    """

    roles: tuple[str, ...]
    runs_synapse: tuple[str, ...]
    upgrades: bool = False
    serves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    receives_media: str | None = None
    alone: str | None = None
    leaves_database: bool = False


NEEDS: Mapping[str, Needs] = {
    "m1": Needs(
        roles=("master", "legacy"),
        runs_synapse=("legacy",),
        upgrades=True,
        serves={"legacy": ("synapse", "relay")},
    ),
    "m2": Needs(
        roles=("master", "legacy", "proxy", "synapse"),
        runs_synapse=("synapse",),
        serves={"legacy": ("relay",), "proxy": ("nginx",), "synapse": ("synapse",)},
        receives_media="synapse",
        alone="synapse",
        leaves_database=True,
    ),
    **{
        part.MILESTONE: Needs(
            roles=("master", *part.CONCERNS, part.ROLE), runs_synapse=()
        )
        for part in parts.PARTS.values()
    },
    cluster.MILESTONE: Needs(
        roles=("master", "proxy", "synapse", cluster.ROLE, cluster.DCS), runs_synapse=()
    ),
}


@dataclass(frozen=True)
class Facts:
    """What was gathered. Plain data; a thing that could not be asked is an ``error`` text.

    :param cmap: the cluster map as written; None when there is none.
    :param schema: its JSON schema.
    :param secrets: names of the secrets at hand.
    :param accepted: ids of accepted minions.
    :param record: the milestones' record.
    :param placement: the recorded placement.
    :param telling: members of whom others are being told, or that has failed.
    :param master_salt: version of the master's Salt.
    :param master_python: version of the Python it runs with, as ``(3, 11)``.
    :param machines: id to ``{"facts": machine_facts.read, "asked": t, "answered": t}``,
        times of the master's clock, or to ``{"error": text}``.
    :param database: ``synapse_db.facts`` or ``{"error": text}``; None: not asked.
    :param backup: ``stands`` (bool), ``problems`` (texts), ``schema`` (version at the
        backup) of the way back, or ``{"error": text}``; None: not asked.
    :param migration: ``way``, ``words`` of ``synapse_db.migration_plan`` and
        ``rehearsed`` (seconds, or None), or None: not asked.
    :param built: the release's archive is on the master.
    :param audit: ``homeserver.audit`` of the machine that is for Synapse alone, or
        ``{"error": text}``; None: not asked.
    :param told: answers to a part's questions, by their names, each the answer or
        ``{"error": text}``.
    :param certificate: ``pem`` (the public certificate with its chain) and ``key_fits``
        (yes or no, never the key); None: there is none to look at.
    :param now: the master's time, in seconds since the epoch.
    :param unreadable: problems met while reading the map's file.
    """

    cmap: Any
    schema: Mapping[str, Any]
    secrets: Collection[str] = ()
    accepted: Collection[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    placement: Mapping[str, Any] = field(default_factory=dict)
    telling: Sequence[str] = ()
    master_salt: str = ""
    master_python: tuple[int, ...] = ()
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    database: Mapping[str, Any] | None = None
    backup: Mapping[str, Any] | None = None
    migration: Mapping[str, Any] | None = None
    built: bool = False
    audit: Mapping[str, Any] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    now: float = 0.0
    unreadable: Sequence[Problem] = ()


@dataclass
class Survey:
    """What was checked, and what was found."""

    checks: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def must(self, good: bool, place: str, what: str, next_step: str) -> bool:
        """Count a check; when it is not good, keep the problem. Answers ``good``."""
        self.checks += 1
        if not good:
            self.problems.append(Problem(place, what, next_step))
        return good


def declared(cmap: Any, roles: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """The well-formed machines of a map that may be bad, of some roles, by id."""
    rows = cmap.get("machines") if isinstance(cmap, Mapping) else None
    if not isinstance(rows, Mapping):
        return {}
    return {
        str(name): row
        for name, row in sorted(rows.items(), key=lambda item: str(item[0]))
        if isinstance(row, Mapping)
        and row.get("role") in roles
        and isinstance(row.get("address"), str)
    }


def of_role(cmap: Any, role: str) -> str | None:
    """The first well-formed machine of a role in a map that may be bad."""
    return next(iter(declared(cmap, (role,))), None)


def get(cmap: Any, *steps: str) -> Any:
    """A value in a map that may be bad; None when the way to it is not there."""
    for step in steps:
        if not isinstance(cmap, Mapping):
            return None
        cmap = cmap.get(step)
    return cmap


def text(cmap: Any, *steps: str) -> str | None:
    """Like :func:`get`, for a string; None when it is something else."""
    found = get(cmap, *steps)
    return found if isinstance(found, str) and found else None


def is_managed(facts: Facts) -> bool:
    """Whether our release has taken over from the server that was found."""
    return bool(facts.placement.get("managed"))


def is_supported_salt(version: str) -> bool:
    """Whether a version is of the LTS line meant, and new enough."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return False
    return int(found.group(1)) == SALT_LINE and int(found.group(2)) >= SALT_MINIMUM


def questions(name: str, facts: Facts) -> dict[str, dict[str, Any]]:
    """What is to be asked of each machine: arguments of ``machine_facts.read``, by id.

    :param name: the milestone.
    :param facts: of which only the map and the records are used.
    """
    needs, cmap = NEEDS[name], facts.cmap
    asked: dict[str, dict[str, Any]] = {
        machine: {"paths": list(folders(row["role"], facts)), "configs": [], "units": []}
        for machine, row in declared(cmap, needs.roles).items()
    }
    for machine, row in asked.items():
        role = cmap["machines"][machine]["role"]
        row["ports"] = sorted({use[0] for use in port_uses(needs, role, facts)})
        row["trees"] = trees(needs, role, facts)
        if needs.upgrades and role == "legacy":
            hashes = get(cmap, "legacy", "config_sha256")
            row["configs"] = sorted(map(str, hashes)) if isinstance(hashes, Mapping) else []
            row["units"] = [unit for unit in [text(cmap, "legacy", "unit")] if unit]
    return asked


def folders(role: str, facts: Facts) -> list[str]:
    """Folders of a role's machine whose room matters."""
    if role == "master":
        return [plan.ARTIFACTS_DIR, plan.RELEASES_DIR]
    backup = text(facts.cmap, "backup", "directory")
    rows = {
        "legacy": [plan.RELEASES_DIR, *([backup] if backup else [])],
        "synapse": [plan.RELEASES_DIR, plan.MEDIA_DIR, plan.DATA_DIR],
    }
    return rows.get(role, [])


def trees(needs: Needs, role: str, facts: Facts) -> list[str]:
    """Folders and files of a role's machine whose size matters."""
    if needs.receives_media is None:
        return []
    if role == "legacy":
        path = text(facts.cmap, "legacy", "media_store_path")
        file = text(facts.cmap, "synapse", "database", "path")
        return [name for name in (path, file) if name]
    return [plan.MEDIA_DIR] if role == needs.receives_media else []


def port_uses(needs: Needs, role: str, facts: Facts) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Ports that a milestone takes on a role's machine: port, kind, units that may hold it."""
    for kind in needs.serves.get(role, ()):
        holders = HOLDERS[kind]
        if kind == "synapse":
            found = text(facts.cmap, "legacy", "unit")
            if role == "legacy" and found:
                holders = (*holders, found)
            ports = [plan.PORT, plan.POLL_PORT]
        elif kind == "nginx":
            listed = get(facts.cmap, "public", "ports")
            ports = [port for port in listed if isinstance(port, int)] if listed else []
        else:
            ports = _relay_ports(facts)
        for port in ports:
            yield port, kind, holders


def _relay_ports(facts: Facts) -> list[int]:
    if clustermap.problems(facts.cmap, facts.schema):
        # What a plan needs is not there; the map's own problems say so.
        return []
    placement = plan.Placement.recorded(facts.cmap, facts.placement)
    rows = parts.with_relays(facts.cmap, placement).values()
    return sorted({int(row["listen"].rpartition(":")[2]) for row in rows})
