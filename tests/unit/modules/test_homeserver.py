"""What may run and listen on a machine that is for Synapse alone."""

from __future__ import annotations

import json
import subprocess
from types import ModuleType
from typing import Any

import pytest

from tests.unit.modules.minion_modules import load

PORTS = [22, 8008, 8009]

ALLOWED = """\
udp UNCONN 0 0      127.0.0.1:323        0.0.0.0:* users:(("chronyd",pid=300,fd=5))
udp UNCONN 0 0          [::1]:323           [::]:* users:(("chronyd",pid=300,fd=6))
udp UNCONN 0 0     127.0.0.54:53         0.0.0.0:* users:(("systemd-resolve",pid=200,fd=16))
udp UNCONN 0 0  127.0.0.53%lo:53         0.0.0.0:* users:(("systemd-resolve",pid=200,fd=14))
udp UNCONN 0 0        0.0.0.0:68         0.0.0.0:* users:(("dhclient",pid=411,fd=7))
udp UNCONN 0 0 198.18.0.12%host0:68      0.0.0.0:* users:(("systemd-network",pid=180,fd=20))
udp UNCONN 0 0 [fe80::1]%host0:546          [::]:* users:(("dhcpcd",pid=181,fd=20))
tcp LISTEN 0 4096 127.0.0.53%lo:53       0.0.0.0:* users:(("systemd-resolve",pid=200,fd=15))
tcp LISTEN 0 128         [::]:22          [::]:* users:(("sshd",pid=44,fd=4),("systemd",pid=1,fd=9))
tcp LISTEN 0 50   198.18.0.12:8008       0.0.0.0:* users:(("python",pid=900,fd=11))
tcp LISTEN 0 50   198.18.0.12:8009       0.0.0.0:* users:(("python",pid=900,fd=12))
"""


@pytest.fixture
def homeserver() -> ModuleType:
    return load("_modules", "homeserver")


def test_the_system_s_own_sockets_are_no_service(homeserver: Any) -> None:
    assert homeserver.strange_listeners(ALLOWED, PORTS) == []


@pytest.mark.parametrize(
    ("line", "by"),
    [
        ('tcp LISTEN 0 511 0.0.0.0:443 0.0.0.0:* users:(("nginx",pid=7,fd=6))', "nginx"),
        ('tcp LISTEN 0 20 127.0.0.1:25 0.0.0.0:* users:(("exim4",pid=7,fd=6))', "exim4"),
        # What only the kernel holds, such as NFS or WireGuard.
        ("tcp LISTEN 0 64 *:2049 *:*", ""),
        # An allowed TCP port is none for UDP.
        ('udp UNCONN 0 0 0.0.0.0:8008 0.0.0.0:* users:(("python",pid=7,fd=6))', "python"),
        # A time server and a name server for others.
        ('udp UNCONN 0 0 0.0.0.0:123 0.0.0.0:* users:(("chronyd",pid=7,fd=6))', "chronyd"),
        ('udp UNCONN 0 0 *:323 *:* users:(("chronyd",pid=7,fd=6))', "chronyd"),
        (
            'udp UNCONN 0 0 0.0.0.0:53 0.0.0.0:* users:(("systemd-resolve",pid=7,fd=6))',
            "systemd-resolve",
        ),
        # Somebody else on a system's port, or beside its program.
        ('udp UNCONN 0 0 127.0.0.1:53 0.0.0.0:* users:(("dnsmasq",pid=7,fd=6))', "dnsmasq"),
        ('udp UNCONN 0 0 0.0.0.0:67 0.0.0.0:* users:(("dhcpcd",pid=7,fd=6))', "dhcpcd"),
        (
            'udp UNCONN 0 0 0.0.0.0:68 0.0.0.0:* users:(("dhclient",pid=7,fd=6),("x",pid=8,fd=6))',
            "dhclient, x",
        ),
    ],
)
def test_everything_else_is_named(homeserver: Any, line: str, by: str) -> None:
    (row,) = homeserver.strange_listeners(ALLOWED + line + "\n", PORTS)
    assert row["by"] == by


def test_units_beside_synapse_and_the_system_are_named(
    homeserver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = ("synapse", "chrony", "systemd-resolved", "ssh", "salt-minion", "exim4")
    rows = [{"unit": f"{name}.service"} for name in units]

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        text = json.dumps(rows) if command[0] == "systemctl" else ALLOWED
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(homeserver.subprocess, "run", run)
    assert homeserver.audit(["synapse"], PORTS) == {"services": ["exim4.service"], "listeners": []}
