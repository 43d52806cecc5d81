"""The host's own Debian sources and apt proxy, so that the lab needs none of its own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .process import host
from .settings import SUITE


@dataclass(frozen=True)
class Entry:
    """One apt source: base address, suite, components, keyring path or ''."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str = ""


@dataclass(frozen=True)
class Archive:
    """Where the machines' packages come from while images are built."""

    main: str
    security: str
    updates: bool
    keyring: str

    def sources(self) -> str:
        """A one-line-style sources list for ``SUITE``."""
        lines = [f"deb {self.main} {SUITE} main"]
        if self.updates:
            lines.append(f"deb {self.main} {SUITE}-updates main")
        if self.security:
            lines.append(f"deb {self.security} {SUITE}-security main")
        return "\n".join(lines) + "\n"


def parse_list(text: str) -> list[Entry]:
    """Entries of a one-line-style file (sources.list(5))."""
    found = []
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match:
            options, uri, suite, components = match.groups()
            keyring = re.search(r"signed-by=(\S+)", options or "")
            found.append(
                Entry(uri, suite, tuple(components.split()), keyring.group(1) if keyring else "")
            )
    return found


def parse_deb822(text: str) -> list[Entry]:
    """Entries of a deb822-style file; disabled stanzas and deb-src are left out."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() == "no":
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        keyring = fields.get("signed-by", "")
        found += [
            Entry(uri, suite, tuple(fields.get("components", "").split()), keyring)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return found


def choose(entries: list[Entry], codename: str) -> Archive | None:
    """The archive among the host's entries, or None if no entry is Debian's main.

    Another host suite serves too: its mirror has ``SUITE`` beside it.
    """
    main = next((e for e in entries if e.suite == codename and "main" in e.components), None)
    if main is None:
        return None
    names = (f"{codename}-security", f"{codename}/updates")
    security = next((e for e in entries if e.suite in names and "main" in e.components), None)
    updates = any(e.suite == f"{codename}-updates" for e in entries)
    keyring = main.keyring if main.keyring.startswith("/") else ""
    return Archive(main.uri, security.uri if security else "", updates, keyring)


def host_entries(etc: Path = Path("/etc/apt")) -> list[Entry]:
    """All enabled entries of the host."""
    entries: list[Entry] = []
    plain = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in plain:
        if path.is_file():
            entries += parse_list(path.read_text(errors="replace"))
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        entries += parse_deb822(path.read_text(errors="replace"))
    return entries


def archive() -> Archive:
    """The host's Debian archive.

    ``SALTWORKS_DEBIAN`` and ``SALTWORKS_DEBIAN_SECURITY`` (addresses) override what apt says.

    Raises:
        LabError: when neither names a Debian archive.
    """
    release = Path("/etc/os-release").read_text()
    codename = re.search(r"^VERSION_CODENAME=(\w+)", release, re.M)
    debian = re.search(r"^ID=debian$", release, re.M)
    found = choose(host_entries(), codename.group(1)) if codename and debian else None
    if override := os.environ.get("SALTWORKS_DEBIAN"):
        return Archive(override, os.environ.get("SALTWORKS_DEBIAN_SECURITY", ""), False, "")
    if found is None:
        raise LabError(
            "no Debian archive in the host's apt sources. Add one, or give its address in "
            "SALTWORKS_DEBIAN (and SALTWORKS_DEBIAN_SECURITY)."
        )
    return found


def apt_conf() -> str:
    """The host's proxy and certificate settings of apt, as an apt.conf."""
    names = "Proxy|CaInfo|Verify-Peer|Verify-Host|SslCert|SslKey"
    wanted = re.compile(rf'^(Acquire::(?:[a-z]+::)?(?:{names})\b.*) "(.*)";$', re.I)
    lines = []
    for line in host(["apt-config", "dump"]).stdout.splitlines():
        match = wanted.match(line)
        if match and match.group(2):
            lines.append(line)
    bundle = os.environ.get("SSL_CERT_FILE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and not any("CaInfo" in line for line in lines):
        lines.append(f'Acquire::https::CaInfo "{bundle}";')
    return "".join(f"{line}\n" for line in lines)
