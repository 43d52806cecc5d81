"""A worker's steps: what runners answer becomes a state; in test mode nothing is asked."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.modules.minion_modules import load

#: A state and the runner behind it.
STEPS = [
    ("begun", "worker.begin"),
    ("synced", "worker.sync"),
    ("healthy", "worker.healthy"),
    ("caught_up", "worker.caught_up"),
    ("registered", "worker.register"),
    ("served", "worker.served"),
    ("joined", "worker.finish"),
    ("draining", "worker.begin_drain"),
    ("emptied", "worker.emptied"),
    ("gone", "worker.gone"),
    ("lost", "worker.lose"),
    ("told", "worker.tell"),
]


@pytest.mark.parametrize(("step", "runner"), STEPS)
def test_each_step_is_its_runner_and_fails_with_its_words(
    step: str, runner: str
) -> None:
    seen: list[tuple[str, list[Any]]] = []
    answer: Any = {"said": "done", "changes": {"a": 1}}

    def run(function: str, arg: list[Any], **_: Any) -> Any:
        seen.append((function, arg))
        return {"return": answer, "success": True}

    state: Any = load("_states", "worker", salt={"saltutil.runner": run})
    done = getattr(state, step)("sync-2")
    assert (done["result"], done["comment"], done["changes"]) == (True, "done", {"a": 1})
    assert seen == [(runner, ["sync-2"])]
    answer = {"retcode": 1, "data": "join refused"}
    failed = getattr(state, step)("sync-2")
    assert (failed["result"], failed["comment"], failed["changes"]) == (False, "join refused", {})


@pytest.mark.parametrize(("step", "runner"), STEPS)
def test_in_test_mode_no_runner_is_asked(step: str, runner: str) -> None:
    state: Any = load("_states", "worker", test=True)
    planned = getattr(state, step)("sync-2")
    assert (planned["result"], planned["changes"]) == (None, {})
    assert planned["comment"].startswith("sync-2: ")


@pytest.mark.parametrize(
    ("names", "result", "comment"),
    [
        (["sync-1", "sync-2"], None, "sync-1, sync-2 would come into service"),
        ([], True, "nobody is on the way in"),
        ({"retcode": 1, "data": "no map"}, False, "no map"),
    ],
)
def test_a_plan_says_who_would_arrive(names: Any, result: bool | None, comment: str) -> None:
    def run(function: str, arg: list[Any], **_: Any) -> Any:
        assert (function, arg) == ("reconcile.coming", [])
        return {"return": names, "success": True}

    state: Any = load("_states", "worker", test=True, salt={"saltutil.runner": run})
    planned = state.arrived("m4.workers")
    assert (planned["result"], planned["comment"], planned["changes"]) == (result, comment, {})


def test_who_arrives_is_the_runner_s_word() -> None:
    def run(function: str, arg: list[Any], **_: Any) -> Any:
        assert (function, arg) == ("reconcile.arrive", [])
        return {"return": {"said": "sync-1 came", "changes": {"joined": 1}}, "success": True}

    state: Any = load("_states", "worker", salt={"saltutil.runner": run})
    done = state.arrived("m4.workers")
    assert (done["result"], done["comment"], done["changes"]) == (
        True, "sync-1 came", {"joined": 1},
    )  # fmt: skip


def test_every_runner_of_a_step_is_there() -> None:
    module: Any = load("_runners", "worker")
    assert [runner for *_, runner in STEPS if not hasattr(module, runner.partition(".")[2])] == []
