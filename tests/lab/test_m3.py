"""The whole of M3 in one orchestration, under the eyes of the witness."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import milestones
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import Stage, after_m2, changes

pytestmark = pytest.mark.lab

MACHINES = ("database", "storage", "directory")
PARTS = ("database", "media", "auth")
#: Units of the chat that the old machine may not run any more in the end.
RETIRED = ("synapse", "matrix-synapse", "postgresql", "postgresql@15-main", "slapd")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own in which M2 is achieved, with three more machines."""
    with after_m2("m3", "postgresql", MACHINES) as made:
        yield made


def test_m3_under_the_eyes_of_the_witness(stage: Stage) -> None:
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m3", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert {stage.state(f"m3.{part}") for part in PARTS} == {"achieved"}
    assert stage.state("m3") == "achieved"


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    pid = stage.main_pid("synapse", "synapse")
    assert pid != "0"
    assert changes(stage.orchestrate("orch.m3")) == []
    assert stage.main_pid("synapse", "synapse") == pid


def test_finalized_the_old_machine_runs_nothing_of_the_chat(stage: Stage) -> None:
    stage.await_no_visitor()
    for step in ("m2", *(f"m3.{part}" for part in PARTS)):
        stage.lab.salt_run("milestone.arm", f"{step}.finalize")
        stage.orchestrate(f"orch.{step}.finalize")
    old = machine_host(stage.legacy)
    assert [unit for unit in RETIRED if old.service(unit).is_running] == []
    assert stage.legacy.run("ls /etc/nginx/sites-enabled").stdout.split() == ["www"]
    assert changes(stage.orchestrate("orch.m3")) == []
    m3 = milestones.MILESTONES["m3"]
    found = json.loads(milestones.read_back_file(stage.lab, "m3").read_text())
    out = stage.lab.settings.reports / "readback-finalized.json"
    after = milestones.read_back(stage.lab, stage.seed, out, m3)
    assert milestones.compared(m3, found, after)["unexplained"] == []


def test_a_highstate_of_any_machine_changes_nothing(stage: Stage) -> None:
    names = ",".join(("legacy", "proxy", "synapse", *MACHINES))
    answers = stage.lab.salt(names, "state.apply", timeout=240)
    rows = [row for answer in answers.values() for row in answer.values()]
    assert len(rows) > 50
    assert [row for row in rows if row["changes"] or row["result"] is not True] == []
