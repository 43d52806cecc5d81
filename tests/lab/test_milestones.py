"""What judges the milestones can say no: the answer walked for changes, the report, the events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import milestones, readback, scenario, witness
from tests.lab.driver import LabError
from tests.lab.driver.settings import Settings
from tests.lab.stage import changes, steps
from tests.lab.witness_ledger import Ledger


def answer(state: dict[str, Any]) -> dict[str, Any]:
    """An orchestration with one step, which ran one state on one machine."""
    below = {"legacy": {"file_|-conf_|-/etc/conf_|-managed": {"__id__": "conf", **state}}}
    step = {"__id__": "m1-converged", "changes": {"out": "highstate", "ret": below}}
    return {"data": {"salt_master": {"salt_|-m1-converged_|-m1_|-state": step}}, "retcode": 0}


def report(**figures: Any) -> dict[str, Any]:
    """A witness's report with which all is well, but for the figures given."""
    return {
        "acknowledged": 200,
        "delivered": 800,
        "lost": 0,
        "duplicated": 0,
        "failed_requests": 0,
        "stale_connections": 0,
        "rate_limited": 0,
        "worst_wait_seconds": 8.5,
        "started": "2026-01-01T00:00:00.000Z",
        "finished": "2026-01-01T00:05:00.000Z",
        "to_device": {"lost": 0, "duplicated": 0},
        "media": {"uploaded": 3, "intact": 3},
        "problems": [],
        "read_back": {"explained": {}, "unexplained": []},
        **figures,
    }


def test_a_changed_state_on_any_machine_is_found() -> None:
    assert changes(answer({"changes": {"diff": "new"}})) == ["conf: {'diff': 'new'}"]
    assert changes({"data": {"salt_master": {}}, "retcode": 0}) == []
    # A change of the step itself, such as of the record, counts as well.
    own = {"data": {"salt_master": {"milestone_|-a_|-m1_|-begun": {"changes": {"m1": "new"}}}}}
    assert len(changes(own)) == 1
    assert steps(answer({"changes": {}})).keys() == {"m1-converged"}


def test_a_report_is_judged_by_the_milestones_own_bound() -> None:
    assert milestones.problems("m1", report()) == []
    assert milestones.problems("m2", report()) == ["worst wait: 8.5 s, at most 6.0 s allowed"]
    for figures in (
        {"lost": 1},
        {"duplicated": 1},
        {"failed_requests": 1},
        {"stale_connections": 1},
        {"rate_limited": 1},
        {"acknowledged": 0},
        {"media": {"uploaded": 3, "intact": 2}},
        {"to_device": {"lost": 1, "duplicated": 0}},
        {"read_back": {"explained": {}, "unexplained": ["users / @anna: 1 -> 2"]}},
    ):
        assert len(milestones.problems("m1", report(**figures))) == 1, figures


def test_a_report_without_a_witness_proves_nothing() -> None:
    cut = {"read_back": report()["read_back"]}
    assert len(milestones.problems("m1", cut)) == 1
    for key in milestones.WITNESSED:
        half = {name: value for name, value in report().items() if name != key}
        (line,) = milestones.problems("m1", half)
        assert "cut short" in line
        assert key in line


class Machines:
    """A lab of which only the folders are there."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(root, "none", root)


READ: dict[str, Any] = {"explained": {}, "unexplained": []}


@pytest.mark.parametrize(
    ("report", "said", "table"),
    [
        ({**Ledger(["@a:b"]).report(), "lost": 1, "read_back": READ}, "lost: 1, must be 0", True),
        ({"read_back": {**READ, "unexplained": ["x / y: 1 -> 2"]}}, "x / y: 1 -> 2", False),
    ],
)
def test_a_proof_that_fails_shows_its_report_and_how_to_try_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: dict[str, Any],
    said: str,
    table: bool,
) -> None:
    monkeypatch.setattr(milestones, "proof", lambda *given: report)
    lab: Any = Machines(tmp_path)
    with pytest.raises(LabError) as failed:
        scenario.achieve_m1(lab, print)
    assert said in str(failed.value)
    assert "`make clean-lab`" in str(failed.value)
    shown = capsys.readouterr().out
    assert ("M1: what the witness saw" in shown) is table
    assert "read back: " in shown


def test_a_report_that_was_kept_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"state": "achieved", "when": "today", "verdict": ""}
    monkeypatch.setattr(milestones, "status", lambda lab: {"m1": row})
    lab: Any = Machines(tmp_path)
    for kept, good in ((report(), True), ({"read_back": report()["read_back"]}, False)):
        witness.write_report(kept, milestones.report_file(lab, "m1"))
        if good:
            assert milestones.conduct(lab, "m1", tmp_path) == kept
        else:
            with pytest.raises(LabError, match=r"cut short(.|\n)*make clean-lab"):
                milestones.conduct(lab, "m1", tmp_path)


def test_a_milestone_is_compared_by_its_own_rules() -> None:
    old = {"admin": {"user": {"@a:b": {"password_hash": "x"}}}}
    new: dict[str, Any] = {"admin": {"user": {"@a:b": {}}}}
    by_m1 = milestones.compared(milestones.MILESTONES["m1"], old, new)
    assert by_m1 == {"explained": {"admin_no_password_hash": 1}, "unexplained": []}
    # The release that M2 moves is the one that M1 made.
    by_m2 = milestones.compared(milestones.MILESTONES["m2"], old, new)
    assert by_m2["explained"] == {}
    assert len(by_m2["unexplained"]) == 1
    known = {rule.name for rule in readback.WHITELIST}
    for milestone in milestones.MILESTONES.values():
        assert milestone.allowed <= known


@pytest.mark.parametrize(
    ("word", "database"), [(None, "postgresql"), ("postgresql", "postgresql"), ("sqlite", "sqlite")]
)
def test_the_old_server_s_database_is_one_setting(
    monkeypatch: pytest.MonkeyPatch, word: str | None, database: str
) -> None:
    monkeypatch.delenv("LEGACY_DATABASE", raising=False)
    if word is not None:
        monkeypatch.setenv("LEGACY_DATABASE", word)
    assert scenario.database() == database


def test_a_database_that_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEGACY_DATABASE", "mysql")
    with pytest.raises(LabError, match="LEGACY_DATABASE is 'mysql': postgresql or sqlite"):
        scenario.database()


def test_each_state_run_is_said_with_its_machines() -> None:
    said: list[str] = []
    on_event = milestones.shown(said.append)
    run = {"fun": "state.sls", "arg": ["roles.legacy.upgrade.window", {"queue": True}]}
    on_event("salt/job/2026/new", {**run, "minions": ["legacy"]})
    on_event("salt/job/2026/new", {"fun": "state.highstate", "arg": [], "minions": ["b", "a"]})
    on_event("salt/job/2026/new", {"fun": "test.ping", "arg": [], "minions": ["a"]})
    on_event("salt/job/2026/ret/legacy", {**run, "id": "legacy"})
    assert said == ["legacy: roles.legacy.upgrade.window", "a, b: highstate"]
