"""An old server on SQLite: rolled back, then M1 and M2 under the eyes of the witness.

One lab for all of it, so the tests stand in the order in which they happen to the server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import legacy, milestones, readback
from tests.lab.driver import SaltRunError
from tests.lab.stage import (
    Stage,
    assert_as_found,
    assert_unharmed,
    changes,
    snapshots,
    staged,
    steps,
)
from tests.lab.test_m1 import SABOTAGE
from tests.lab.test_m2 import MACHINES, NEW

pytestmark = pytest.mark.lab

DELETE = (
    f"import sqlite3; db = sqlite3.connect('{legacy.HOME}/homeserver.db'); "
    "db.execute('DELETE FROM user_filters'); db.commit()"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own with an adopted old server on SQLite."""
    with staged("sqlite", "sqlite") as made:
        yield made


def test_a_verify_that_fails_rolls_back_and_nobody_notices(stage: Stage) -> None:
    kept = milestones.read_back_file(stage.lab, "m0")
    before = milestones.read_back(stage.lab, stage.seed, kept)
    stage.legacy.write(SABOTAGE, f'[Service]\nExecStartPre=+/usr/bin/python3 -c "{DELETE}"\n')
    stage.legacy.run("systemctl daemon-reload")
    out = stage.lab.settings.reports / "rollback.json"
    with milestones.chatting(stage.lab, stage.seed, out), pytest.raises(SaltRunError) as failed:
        stage.orchestrate("orch.m1")
    assert any(
        "upgrade-nothing-lost" in line and "count of user_filters" in line
        for line in failed.value.failures
    ), failed.value.failures
    assert_unharmed(out)
    assert_as_found(stage)
    after = milestones.read_back(stage.lab, stage.seed, stage.lab.settings.reports / "back.json")
    assert readback.compare(before, after) == []
    stage.legacy.run(f"rm -r {SABOTAGE.rpartition('/')[0]} && systemctl daemon-reload")


def test_m1_under_the_eyes_of_the_witness(stage: Stage) -> None:
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m1", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state() == "achieved"
    assert stage.door() == ("open", "legacy")
    assert stage.main_pid("matrix-synapse") == "0"


def test_a_second_run_of_m1_changes_nothing(stage: Stage) -> None:
    found, pid = snapshots(stage, ("salt", "legacy")), stage.main_pid("synapse")
    assert pid != "0"
    answer = stage.orchestrate("orch.m1")
    assert changes(answer) == []
    assert "No changes made to" in steps(answer)["m1-converged"]["comment"]
    assert stage.main_pid("synapse") == pid
    assert snapshots(stage, ("salt", "legacy")) ^ found == set()


def test_m2_under_the_eyes_of_the_witness(stage: Stage) -> None:
    stage.lab.up(NEW)
    stage.lab.access.answering(list(MACHINES))
    milestones.declare(stage.lab, milestones.rows(stage.lab, NEW))
    # The database goes along: what was read before the move is read after it, and nothing else.
    report = milestones.conduct(stage.lab, "m2", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state("m2") == "achieved"
    assert stage.door("proxy") == ("open", "synapse")
    assert stage.main_pid("synapse") == "0"


def test_a_second_run_of_m2_changes_nothing(stage: Stage) -> None:
    found, pid = snapshots(stage, MACHINES), stage.main_pid("synapse", "synapse")
    assert pid != "0"
    assert changes(stage.orchestrate("orch.m2")) == []
    assert stage.main_pid("synapse", "synapse") == pid
    assert snapshots(stage, MACHINES) ^ found == set()
