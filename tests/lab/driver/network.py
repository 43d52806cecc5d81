"""The lab's network: one namespace with a bridge and a name server, and no way out."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError
from .process import Result, host, wait_for
from .settings import BRIDGE, BRIDGE_MAC, GATEWAY, PREFIX, Settings

TTL = 2
"""Seconds for which a client of the lab may keep an answer: short, so that a moved name moves."""


@dataclass(frozen=True)
class Network:
    """One namespace ``settings.netns`` and all that is in it."""

    settings: Settings

    @property
    def handle(self) -> Path:
        return Path("/run/netns") / self.settings.netns

    @property
    def _etc(self) -> Path:
        return Path("/etc/netns") / self.settings.netns

    @property
    def _dns(self) -> Path:
        return self.settings.root / "dns"

    @property
    def exists(self) -> bool:
        return self.handle.exists()

    def inside(self) -> list[str]:
        """Prefix that runs a command in the namespace, the rest of the host unchanged."""
        return ["nsenter", f"--net={self.handle}", "--"]

    def client(self) -> list[str]:
        """Prefix for clients of the lab: its network and its name server."""
        return ["ip", "netns", "exec", self.settings.netns]

    def up(self) -> None:
        """Make what is missing: namespace, bridge, name server.

        Raises:
            LabError: when the namespace is another lab's.
        """
        name = self.settings.netns
        if other := self.tenant():
            raise LabError(
                f"the network namespace {name} is the lab's in {other}: `make clean-lab` there, or "
                "choose another one here by SALTWORKS_NETNS"
            )
        if not self.exists:
            host(["ip", "netns", "add", name])
        if not self._ip(["link", "show", BRIDGE], check=False).ok:
            # Its own: else it is that of a machine, and when that one dies answers to the
            # clients go to an address that is no more, until they ask anew.
            self._ip(["link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"])
        addresses = self._ip(["addr", "show", "dev", BRIDGE]).stdout
        if f"{GATEWAY}/{PREFIX}" not in addresses:
            self._ip(["addr", "add", f"{GATEWAY}/{PREFIX}", "dev", BRIDGE])
        for link in ("lo", BRIDGE):
            self._ip(["link", "set", link, "up"])
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / "resolv.conf").write_text(f"nameserver {GATEWAY}\noptions timeout:2\n")
        self._serve_names()

    def point(self, name: str, address: str) -> None:
        """Let ``name`` answer with ``address`` from now on."""
        names = self.names()
        if names.get(name) == address:
            return
        self._write(names | {name: address})
        pid = self.server()
        if pid:
            os.kill(pid, signal.SIGHUP)

    def names(self) -> dict[str, str]:
        """Every name served, with its address."""
        file = self._dns / "hosts"
        if not file.exists():
            return {}
        pairs = (line.split() for line in file.read_text().splitlines())
        return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}

    def server(self) -> int:
        """Process id of this lab's name server, or 0."""
        wanted = f"--addn-hosts={self._dns / 'hosts'}".encode()
        return next((pid for pid, words in command_lines() if wanted in words), 0)

    def tenant(self) -> str:
        """Folder of another lab whose name server is in this namespace; empty: none."""
        option, rest = "--addn-hosts=", "/dns/hosts"
        for pid, words in command_lines():
            for word in map(os.fsdecode, words):
                folder = word.removeprefix(option).removesuffix(rest)
                if word != f"{option}{folder}{rest}" or folder == str(self.settings.root):
                    continue
                with contextlib.suppress(OSError):
                    if os.path.samefile(f"/proc/{pid}/ns/net", self.handle):
                        return folder
        return ""

    def stop_names(self) -> bool:
        """Stop the name server; True if one ran."""
        pid = self.server()
        if not pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.server(), 30, "the lab's name server to end")
        return True

    def link(self, machine: str, up: bool) -> None:
        """Cut or mend a machine's cable.

        Raises:
            LabError: when the machine has no cable, which means it does not run.
        """
        state = "up" if up else "down"
        if not self._ip(["link", "set", f"vb-{machine}", state], check=False).ok:
            raise LabError(f"{machine} has no link in {self.settings.netns}: boot it first")

    def down(self) -> None:
        """Remove the namespace, with the bridge and every rule in it."""
        self.stop_names()
        if self.exists:
            host(["ip", "netns", "del", self.settings.netns])
        (self._etc / "resolv.conf").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._etc.rmdir()
            self._etc.parent.rmdir()

    def _ip(self, words: list[str], check: bool = True) -> Result:
        return host(["ip", "-n", self.settings.netns, *words], check=check)

    def _write(self, names: dict[str, str]) -> None:
        self._dns.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{address} {name}\n" for name, address in sorted(names.items()))
        new = self._dns / "hosts.new"
        new.write_text(text)
        new.rename(self._dns / "hosts")

    def _serve_names(self) -> None:
        self._write(dict(self.settings.addresses) | self.names())
        if self.server():
            return
        host(
            [
                *self.inside(),
                "dnsmasq",
                "--conf-file=/dev/null",
                "--user=root",
                "--no-resolv",
                "--no-hosts",
                f"--addn-hosts={self._dns / 'hosts'}",
                f"--local-ttl={TTL}",
                f"--neg-ttl={TTL}",
                f"--listen-address={GATEWAY}",
                "--bind-interfaces",
                f"--pid-file={self._dns / 'pid'}",
                f"--log-facility={self.settings.root / 'dns' / 'log'}",
            ]
        )
        wait_for(self.server, 30, "the lab's name server")


def command_lines() -> list[tuple[int, list[bytes]]]:
    """Process id and argument words of every process of the host."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().split(b"\0")))
    return found
