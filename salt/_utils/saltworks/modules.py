"""Synapse's modules: their code, the authorities they trust, and the directory behind them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .clustermap import Map

#: matrix-synapse-ldap3's class, and ours upon it, which has bounds.
LDAP = "ldap_auth_provider.LdapAuthProviderModule"
BOUNDED_LDAP = "saltworks_ldap.LdapModule"

#: The package of ours, locked like a release: a changed file is another package.
BOUNDED_LDAP_PACKAGE = {
    "source": "salt://synapse/files/plugins/saltworks_ldap.py",
    "source_hash": "sha256=6392bec471ea91e15ee04410354d05981ef74ec125a193ef6fda024c4ae92103",
}

#: Tells nginx whose a token is; see formulas/nginx/README.md.
OWNER = "saltworks_owner.Owner"
OWNER_PACKAGE = {
    "source": "salt://synapse/files/plugins/saltworks_owner.py",
    "source_hash": "sha256=a7608b34bf3b9edef8301f4f29eafb452ca90458137f0381801ae4efeb10c1a2",
}

#: Waits for a database whose primary changes.
PATIENCE = "saltworks_patience.Patience"
PATIENCE_PACKAGE = {
    "source": "salt://synapse/files/plugins/saltworks_patience.py",
    "source_hash": "sha256=a490ad37d238c38202982ea18ffdc05104a8c38617da3a6852a000cfb7ed52d9",
}

#: Comes back to Redis within a second; Synapse's own senders may wait for ten.
BUS = "saltworks_bus.Bus"
BUS_PACKAGE = {
    "source": "salt://synapse/files/plugins/saltworks_bus.py",
    "source_hash": "sha256=8d5ce6ef9992e946d60f28999450ba5df4f783244dc868e528295a9f25670a16",
}

#: What every process has once there are workers, or may be.
BESIDE_WORKERS: Mapping[str, Mapping[str, str]] = {
    OWNER: OWNER_PACKAGE,
    PATIENCE: PATIENCE_PACKAGE,
    BUS: BUS_PACKAGE,
}

#: Reads from standbys of the database; a package of its own (``src``).
STANDBY_READS = "synapse_standby_reads.StandbyReads"

_URI = re.compile(r"modules\.(\d+)\.config\.uri(?:\.\d+)?")


@dataclass(frozen=True)
class FoundDirectory:
    """An LDAP server on the legacy machine's loopback that a module asks.

    :param index: the module's place in ``synapse.modules``.
    :param path: of the loopback row that says so.
    :param port: the server's.
    """

    index: int
    path: str
    port: int


def rows(cmap: Map) -> list[dict[str, Any]]:
    """The modules as homeserver.yaml has them."""
    return [
        {key: copy.deepcopy(row[key]) for key in ("module", "config") if key in row}
        for row in cmap["synapse"].get("modules", [])
    ]


def beside_workers(redis: str) -> list[dict[str, Any]]:
    """The modules that Synapse needs beside a site's own once it has workers.

    :param redis: the machine through which processes hear of each other; empty: there is one.
    """
    return [{"module": name, "config": {}} for name in BESIDE_WORKERS] if redis else []


def standby_reads(standbys_file: str) -> dict[str, Any]:
    """The module by which a process reads from standbys of the database.

    :param standbys_file: where it finds them; while there are none it reads from the primary.
    """
    return {"module": STANDBY_READS, "config": {"standbys_file": standbys_file}}


def libraries(reads: bool) -> dict[str, str]:
    """Packages that come as folders of the file server.

    :param reads: whether the machine's processes read from standbys.
    """
    name = STANDBY_READS.partition(".")[0]
    return {name: f"salt://{name}"} if reads else {}


def plugins(cmap: Map) -> dict[str, dict[str, str]]:
    """Packages beside the release, by the name of what is imported.

    Ours are there before they are first used, that for LDAP as soon as there is an LDAP module:
    Synapse's unit names them, and it would have to be restarted for them, and once more when a
    part has been taken back.
    """
    found = {
        str(row["module"]).partition(".")[0]: dict(row["package"])
        for row in cmap["synapse"].get("modules", [])
        if "package" in row
    }
    if any(row["module"] == LDAP for row in cmap["synapse"].get("modules", [])):
        found[BOUNDED_LDAP.partition(".")[0]] = dict(BOUNDED_LDAP_PACKAGE)
    for name, package in BESIDE_WORKERS.items():
        found[name.partition(".")[0]] = dict(package)
    return found


def certificates(cmap: Map) -> dict[str, Any]:
    """Authorities that modules trust, name to PEM or ``{"secret": name}``."""
    found: dict[str, Any] = {}
    for row in cmap["synapse"].get("modules", []):
        found.update(row.get("certificates", {}))
    return found


def directories(cmap: Map) -> list[FoundDirectory]:
    """The LDAP servers on the legacy machine's loopback."""
    modules = cmap["synapse"].get("modules", [])
    found = []
    for row in cmap["synapse"].get("loopback", []):
        match = _URI.fullmatch(row["path"])
        if match and _is_ldap(modules, int(match.group(1))):
            found.append(FoundDirectory(int(match.group(1)), row["path"], row["port"]))
    return found


def left_on_loopback(cmap: Map) -> list[Mapping[str, Any]]:
    """Loopback rows of modules that are not LDAP: a site's own provider, say."""
    ldap = {found.path for found in directories(cmap)}
    return [
        row
        for row in cmap["synapse"].get("loopback", [])
        if row["path"].startswith("modules.") and row["path"] not in ldap
    ]


def _is_ldap(modules: list[Mapping[str, Any]], index: int) -> bool:
    return index < len(modules) and modules[index]["module"] == LDAP
