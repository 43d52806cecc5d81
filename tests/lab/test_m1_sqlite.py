"""M1 of an old server on SQLite, under the eyes of the witness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import milestones
from tests.lab.stage import Stage, changes, staged, steps

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own with an adopted old server on SQLite."""
    with staged("m1lite", "sqlite") as made:
        yield made


def test_m1_of_a_server_on_sqlite(stage: Stage) -> None:
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m1", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state() == "achieved"
    assert stage.door() == ("open", "legacy")
    assert stage.main_pid("matrix-synapse") == "0"


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    pid = stage.main_pid("synapse")
    assert pid != "0"
    answer = stage.orchestrate("orch.m1")
    assert changes(answer) == []
    assert "No changes made to" in steps(answer)["m1-converged"]["comment"]
    assert stage.main_pid("synapse") == pid
