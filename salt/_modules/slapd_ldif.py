"""LDIF as slapcat writes it, and the configuration of slapd in it: pure functions.

slapd keeps both its configuration (cn=config) and its data in such text; see ``slapd``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "slapd_ldif"

#: What the database of a replica has.
REPLICATED = ("olcsyncrepl", "olcmirrormode", "olcmultiprovider")

Entries = dict[str, list[str]]


def __virtual__() -> str:
    return __virtualname__


def entries(ldif: str) -> Entries:
    """The entries of what slapcat wrote with unfolded lines: dn to its lines, in order.

    :raises CommandExecutionError: it is no such text.
    """
    found: Entries = {}
    for block in re.split(r"\n\n+", ldif.strip("\n")):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        if not lines[0].startswith("dn:"):
            raise CommandExecutionError(f"no LDIF as slapcat writes it: {lines[0][:40]!r}")
        found[value(lines[0])] = lines[1:]
    return found


def text(found: Entries) -> str:
    """The entries as LDIF, in their order."""
    return "".join(
        "\n".join([f"dn:: {base64.b64encode(dn.encode()).decode()}", *lines]) + "\n\n"
        for dn, lines in found.items()
    )


def name_of(line: str) -> str:
    """The attribute of a line, in small letters."""
    return line.partition(":")[0].partition(";")[0].lower()


def value(line: str) -> str:
    """The value of a line, decoded."""
    plain = line.partition(":")[2]
    if plain.startswith(":"):
        return base64.b64decode(plain[1:].strip()).decode(errors="replace")
    return plain.strip()


def databases(config: Entries) -> list[dict[str, Any]]:
    """The databases that hold data, from cn=config."""
    rows = []
    for dn, lines in config.items():
        found = re.match(r"olcDatabase=\{(\d+)\}([a-z]+),cn=config$", dn, re.I)
        if not found or found.group(2) in ("config", "frontend", "monitor"):
            continue
        by_name: dict[str, str] = {}
        for line in lines:
            by_name.setdefault(name_of(line), value(line))
        rows.append(
            {
                "dn": dn,
                "number": int(found.group(1)),
                "backend": found.group(2),
                "suffix": by_name.get("olcsuffix", ""),
                "directory": by_name.get("olcdbdirectory", ""),
                "read_only": by_name.get("olcreadonly", "FALSE").upper() == "TRUE",
                "replica": any(name in by_name for name in REPLICATED),
            }
        )
    return rows


def adapted(config: Entries, tls: str, data: str) -> Entries:
    """A found configuration for the machine that it moves to: its TLS, its folder, writable.

    :param tls: folder with the machine's ``ca.crt``, ``tls.crt`` and ``tls.key``.
    :param data: folder of the database.
    """
    made: Entries = {}
    with_data = [row["dn"] for row in databases(config)]
    for dn, lines in config.items():
        if dn == "cn=config":
            kept = [
                line
                for line in lines
                if not name_of(line).startswith("olctls")
                and name_of(line) not in ("olcpidfile", "olcargsfile")
            ]
            made[dn] = [
                *kept,
                "olcPidFile: /run/slapd/slapd.pid",
                "olcArgsFile: /run/slapd/slapd.args",
                f"olcTLSCACertificateFile: {tls}/ca.crt",
                f"olcTLSCertificateFile: {tls}/tls.crt",
                f"olcTLSCertificateKeyFile: {tls}/tls.key",
                "olcTLSProtocolMin: 3.3",
            ]
        elif dn in with_data:
            kept = [
                line for line in lines if name_of(line) not in ("olcdbdirectory", "olcreadonly")
            ]
            made[dn] = [*kept, f"olcDbDirectory: {data}"]
        else:
            made[dn] = list(lines)
    return made


def differing(wanted: Entries, found: Entries, ignored: Sequence[str] = ()) -> list[str]:
    """Names of the entries that are not equal, in whatever order their attributes come."""

    def plain(lines: Sequence[str]) -> list[str]:
        return sorted(line for line in lines if name_of(line) not in ignored)

    return sorted(
        dn
        for dn in {*wanted, *found}
        if dn not in wanted or dn not in found or plain(wanted[dn]) != plain(found[dn])
    )
