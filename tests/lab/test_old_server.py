"""The old server (M0): what the seed wrote is what a client reads, also after a restart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import legacy, m0, people, readback, scenario
from tests.lab.driver import PROJECT, Lab, LabMachine

pytestmark = pytest.mark.lab

Read = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def old_server() -> Iterator[LabMachine]:
    """The lab's legacy machine; made here if no `make lab` left one, and then removed again."""
    lab = Lab.load()
    machine = lab.machine(m0.MACHINE)
    made_here = not machine.created
    scenario.old_server(lab, lambda text: None)
    if not machine.running:
        machine.boot()
    legacy.await_synapse(machine)
    yield machine
    if made_here:
        machine.destroy()


@pytest.fixture
def read(old_server: LabMachine, tmp_path: Path) -> Read:
    """Reads everything back as each user, through the public name."""
    lab = Lab.load()
    seed = m0.m0(lab).seed

    def reading() -> dict[str, Any]:
        out = tmp_path / "readback.json"
        words = ["--url", people.PUBLIC_URL, "--ca", str(lab.settings.ca), "--seed", str(seed)]
        words += ["--admin-url", legacy.ADMIN_URL, "--admin-pid", str(old_server.init())]
        words += ["--events", "200", "--out", str(out)]
        done = subprocess.run(
            [*lab.network.client(), sys.executable, "-m", "tests.lab.readback", *words],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    return reading


def unexplained(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Places that differ and that no rule of the whitelist explains."""
    return [str(row) for row in readback.compare(before, after) if not row.allowed_by]


def test_a_restart_changes_nothing(old_server: LabMachine, read: Read) -> None:
    before = read()
    old_server.run("systemctl restart matrix-synapse", timeout=60)
    legacy.await_synapse(old_server)
    assert unexplained(before, read()) == []


def test_the_other_web_site_is_served_beside_it(old_server: LabMachine) -> None:
    answer = old_server.run("curl -sf -H 'Host: www.lale.test' http://127.0.0.1/")
    assert "<html" in answer.stdout.lower()
