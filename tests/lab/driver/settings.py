"""Names, addresses and places of one lab."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
"""The checkout."""

SUITE = "bookworm"
"""Debian suite of every machine."""

BRIDGE = "sw0"
BRIDGE_MAC = "02:00:c6:12:00:01"
GATEWAY = "198.18.0.1"
PREFIX = 24

ADDRESSES: dict[str, str] = {
    "salt": "198.18.0.2",
    "legacy": "198.18.0.10",
    "proxy": "198.18.0.11",
    "synapse": "198.18.0.12",
    "database": "198.18.0.13",
    "storage": "198.18.0.14",
    "directory": "198.18.0.15",
    "redis": "198.18.0.16",
    "database-2": "198.18.0.17",
    "dcs-1": "198.18.0.18",
    "dcs-2": "198.18.0.19",
    "dcs-3": "198.18.0.20",
}
"""Machines the lab starts with: name = minion id = hostname, and address."""

WORKERS: dict[str, str] = {
    "sync-1": "198.18.0.33",
    "writer-1": "198.18.0.34",
    "sync-2": "198.18.0.35",
    "sender-1": "198.18.0.36",
    "writer-2": "198.18.0.37",
    "initial-sync-1": "198.18.0.38",
    "login-1": "198.18.0.39",
    "user-directory-1": "198.18.0.40",
    "client-1": "198.18.0.41",
    "federation-in-1": "198.18.0.42",
    "media-1": "198.18.0.43",
    "persister-1": "198.18.0.44",
    "federation-out-1": "198.18.0.45",
    "pusher-1": "198.18.0.46",
    "background-1": "198.18.0.47",
    "appservice-1": "198.18.0.48",
}
WORKER_NETWORK = "198.18.0.32/27"
"""Machines of workers, and where: the master has no key of theirs."""

INVITED: dict[str, str] = {**WORKERS, "database-3": "198.18.0.21"}
"""All machines that come by an invite: made when a test wants them."""

MASTER = "salt"

NETNS = "netns"
"""File in a lab's state that names its network namespace."""


@dataclass(frozen=True)
class Settings:
    """Where a lab lives.

    Attributes:
        root: state of this lab (machines, logs, reports); ``.lab`` of the checkout by default.
        netns: network namespace that holds the whole of its network.
        cache: images and packages, shared by all labs of the host, keyed by content.
    """

    root: Path
    netns: str
    cache: Path
    addresses: dict[str, str] = field(default_factory=lambda: dict(ADDRESSES))

    @classmethod
    def load(cls, root: Path | None = None, netns: str | None = None) -> Settings:
        """Settings from arguments, else ``SALTWORKS_{LAB,NETNS,CACHE}``, else the defaults."""
        env = os.environ
        where = root or Path(env.get("SALTWORKS_LAB") or PROJECT / ".lab")
        return cls(
            root=where.resolve(),
            netns=netns or env.get("SALTWORKS_NETNS") or "saltworks",
            cache=Path(env.get("SALTWORKS_CACHE") or "/var/cache/saltworks").resolve(),
        )

    def note(self) -> None:
        """Write down which namespace this lab uses, for who cleans up after a killed run."""
        (self.root / NETNS).write_text(f"{self.netns}\n")

    def beside(self) -> list[Settings]:
        """Labs that tests made beside this one (``.lab-m1`` beside ``.lab``) and did not remove."""
        found = []
        for root in sorted(self.root.parent.glob(f"{self.root.name}-*")):
            note = root / NETNS
            if note.is_file():
                found.append(Settings(root, note.read_text().strip(), self.cache))
        return found

    @property
    def machines(self) -> Path:
        return self.root / "machines"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def cgroup(self) -> str:
        """Name of the lab's own control group: one per network namespace."""
        return f"saltworks-lab-{self.netns}"
