"""What judges the milestones can say no: the answer walked for changes, the report, the events."""

from __future__ import annotations

from typing import Any

from tests.lab import milestone_table, milestones
from tests.lab.stage import changes, steps


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
        "worst_wait_seconds": 8.5,
        "to_device": {"lost": 0, "duplicated": 0},
        "media": {"uploaded": 3, "intact": 3},
        "problems": [],
        "read_back": {"explained": 5, "unexplained": []},
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
        {"acknowledged": 0},
        {"media": {"uploaded": 3, "intact": 2}},
        {"to_device": {"lost": 1, "duplicated": 0}},
        {"read_back": {"explained": 5, "unexplained": ["users / @anna: 1 -> 2"]}},
    ):
        assert len(milestones.problems("m1", report(**figures))) == 1, figures


def test_a_report_without_a_witness_is_judged_by_what_was_read() -> None:
    cut = {"read_back": {"explained": 5, "unexplained": []}}
    assert milestones.problems("m1", cut) == []
    assert "no figures" in milestone_table.summary(cut)


def test_each_state_run_is_said_with_its_machines() -> None:
    said: list[str] = []
    on_event = milestones.shown(said.append)
    run = {"fun": "state.sls", "arg": ["roles.legacy.upgrade.window", {"queue": True}]}
    on_event("salt/job/2026/new", {**run, "minions": ["legacy"]})
    on_event("salt/job/2026/new", {"fun": "state.highstate", "arg": [], "minions": ["b", "a"]})
    on_event("salt/job/2026/new", {"fun": "test.ping", "arg": [], "minions": ["a"]})
    on_event("salt/job/2026/ret/legacy", {**run, "id": "legacy"})
    assert said == ["legacy: roles.legacy.upgrade.window", "a, b: highstate"]
