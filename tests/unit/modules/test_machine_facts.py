"""What a machine says of itself: how the answers of its tools are read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


@pytest.fixture
def facts() -> ModuleType:
    return load("_modules", "machine_facts")


SS = """\
LISTEN 0 511        0.0.0.0:443  0.0.0.0:* users:(("nginx",pid=77,fd=6),("nginx",pid=76,fd=6))
LISTEN 0 4096 127.0.0.53%lo:53   0.0.0.0:* users:(("systemd-resolve",pid=9,fd=14))
LISTEN 0 128           [::]:22      [::]:* users:(("sshd",pid=44,fd=4))
LISTEN 0 64               *:2049       *:*
"""


def test_listeners(facts: ModuleType) -> None:
    assert facts.listeners(SS) == [
        {"port": 443, "address": "0.0.0.0", "program": "nginx", "pid": 77},
        {"port": 53, "address": "127.0.0.53", "program": "systemd-resolve", "pid": 9},
        {"port": 22, "address": "::", "program": "sshd", "pid": 44},
        {"port": 2049, "address": "*", "program": "", "pid": 0},
    ]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("9:name=systemd:/init.scope\n8:pids:/\n0::/init.scope\n", "init.scope"),
        (
            "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
            "postgresql@15-main.service",
        ),
        ("0::/system.slice/x.service/payload/sub\n", "x.service"),
        ("0::/\n", ""),
    ],
)
def test_the_unit_of_a_process(facts: ModuleType, text: str, unit: str) -> None:
    assert facts.unit_of(text) == unit


def test_states_of_units(facts: ModuleType) -> None:
    text = "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=failed\n"
    assert facts.states(text) == {"a.service": "active", "b.service": "failed"}
    assert facts.states("") == {}


def test_addresses(facts: ModuleType) -> None:
    links = [
        {"addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {"addr_info": [{"local": "198.18.0.10", "scope": "global"}, {"scope": "global"}]},
        {"addr_info": [{"local": "fe80::1", "scope": "link"}]},
        {},
    ]
    assert facts.addresses(links) == ["198.18.0.10"]


def test_one_reading_of_this_machine(facts: ModuleType, tmp_path: Path) -> None:
    facts.__dict__["__grains__"] = {"os": "Debian", "os_family": "Debian", "osrelease": "12"}
    facts.__dict__["_ask"] = lambda *command: "" if command[0] != "ip" else "[]"
    config = tmp_path / "homeserver.yaml"
    config.write_bytes(b"server_name: x\n")
    os.makedirs(tmp_path / "media" / "deep")
    (tmp_path / "media" / "deep" / "file").write_bytes(b"x" * 1000)
    missing = str(tmp_path / "not" / "there")
    found = facts.read_(
        paths=[missing],
        configs=[str(config), missing],
        trees=[str(tmp_path / "media"), missing, str(config)],
        programs=["no-such-program"],
    )
    assert found["free"][missing]["parent"] == str(tmp_path)
    assert found["free"][missing]["bytes"] > 0
    assert found["configs"] == {
        str(config): hashlib.sha256(b"server_name: x\n").hexdigest(),
        missing: None,
    }
    assert found["trees"][str(tmp_path / "media")] == {"bytes": 1000, "complete": True}
    assert found["trees"][missing] == {"bytes": 0, "complete": True}
    assert found["trees"][str(config)]["bytes"] == 15
    assert found["programs"] == {"no-such-program": []}
    late = facts.read_(trees=[str(tmp_path / "media")], tree_seconds=-1)
    assert late["trees"][str(tmp_path / "media")]["complete"] is False


def test_a_tool_that_is_missing_or_fails_is_named(facts: ModuleType) -> None:
    with pytest.raises(CommandExecutionError, match="no-such-tool is missing on this machine"):
        facts._ask("no-such-tool")
    with pytest.raises(CommandExecutionError, match="false failed"):
        facts._ask("false")
