"""How long people are held in the windows of M1 and M2, against a bare restart, in one run."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import pytest

from tests.bench import results
from tests.lab import legacy, milestones
from tests.lab.driver import LabMachine, wait_for
from tests.lab.stage import staged, steps
from tests.lab.test_m2 import NEW

pytestmark = [pytest.mark.lab, pytest.mark.bench]

RESTARTS = 5


def restarted(machine: LabMachine, unit: str, url: str) -> float:
    """Seconds from the order to restart a unit until its Synapse answers; the median of some."""

    def once() -> float:
        begun = time.monotonic()
        machine.run(["systemctl", "restart", unit], timeout=120)
        health = ["curl", "-sf", "--max-time", "2", f"{url}/health"]
        answers = lambda: machine.run(health, check=False).ok  # noqa: E731
        wait_for(answers, 60, f"{unit} to answer", interval=0.02)
        return time.monotonic() - begun

    return statistics.median(once() for _ in range(RESTARTS))


def m1_window(answer: dict[str, Any]) -> float:
    """Seconds from the order to close the door to the door's being open, by the states' clocks."""
    rows = steps(answer)["m1-window"]["changes"]["ret"]["legacy"].values()
    spent = {row["__id__"]: row["duration"] / 1000 for row in rows}
    return float(sum(seconds for name, seconds in spent.items() if name != "upgrade-announced"))


def test_windows_against_a_bare_restart() -> None:
    with staged("bench", "postgresql") as stage:
        bare_old = restarted(stage.legacy, "matrix-synapse", legacy.ADMIN_URL)
        out = stage.lab.settings.reports / "m1.json"
        with milestones.chatting(stage.lab, stage.seed, out):
            held_m1 = m1_window(milestones.orchestrate(stage.lab, "orch.m1"))
        wait_m1 = json.loads(out.read_text())["worst_wait_seconds"]
        bare_new = restarted(stage.legacy, "synapse", legacy.ADMIN_URL)

        stage.lab.up(["proxy", "synapse"])
        milestones.declare(stage.lab, milestones.rows(stage.lab, NEW))
        out = stage.lab.settings.reports / "m2.json"
        with milestones.chatting(stage.lab, stage.seed, out):
            moved = steps(milestones.orchestrate(stage.lab, "orch.m2"))["m2-handed-over"]["changes"]
        wait_m2 = json.loads(out.read_text())["worst_wait_seconds"]
        held_m2 = float(moved["moved"]["window"])

    rows = [
        ["restart of 1.40.0", f"{bare_old:.2f}", "", "", ""],
        ["M1's window", f"{held_m1:.2f}", f"{held_m1 / bare_old:.1f}", "1.40.0", f"{wait_m1:.2f}"],
        ["restart of the new release", f"{bare_new:.2f}", "", "", ""],
        ["M2's window", f"{held_m2:.2f}", f"{held_m2 / bare_new:.1f}", "new", f"{wait_m2:.2f}"],
    ]
    head = ["", "seconds", "ratio", "to the restart of", "worst wait of the witness, s"]
    results.show("windows", "Windows of M1 and M2 against a bare restart", head, rows)
