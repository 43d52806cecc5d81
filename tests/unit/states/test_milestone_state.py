"""The master's own steps: runners' answers and failures as states."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import SaltInvocationError

from tests.unit.modules.minion_modules import load


class Master:
    """``saltutil.runner`` with canned answers: the raw return, ``Exception`` or a string."""

    def __init__(self, test: bool = False, **answers: Any) -> None:
        self.answers = {name.replace("__", "."): value for name, value in answers.items()}
        self.seen: list[tuple[str, Any]] = []
        self.state: Any = load(
            "_states", "milestone", test=test, salt={"saltutil.runner": self._runner}
        )

    def _runner(
        self, function: str, arg: list[Any], kwarg: dict[str, Any], full_return: bool
    ) -> Any:
        assert full_return
        self.seen.append((function, kwarg or arg))
        answer = self.answers[function]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Raw):
            return answer.value
        return {"return": answer, "success": True}


class Raw:
    """What the runner client gives when a runner did not simply return."""

    def __init__(self, value: Any) -> None:
        self.value = value


REFUSED = {"retcode": 1, "data": "M2 refused, nothing was changed: 1 problem"}
FAILURES = [
    (REFUSED, "M2 refused, nothing was changed: 1 problem"),
    (Raw({"return": "Exception occurred in runner", "success": False}), "Exception occurred"),
    (Raw("'handover' is not available."), "is not available"),
    (SaltInvocationError("passed invalid arguments"), "invalid arguments"),
]
#: A state and the runner behind it.
STEPS = [
    ("prechecked", "precheck.milestone"),
    ("verified", "verify.milestone"),
    ("begun", "milestone.begin"),
    ("knows_host_key", "placement.remember_host_key"),
    ("handed_over", "handover.synapse"),
    ("handed_back", "handover.back"),
    ("name_moved", "handover.name_moved"),
    ("achieved", "milestone.achieve"),
    ("rolled_back", "milestone.roll_back"),
    ("disarmed", "milestone.check_catch"),
]
LOOKING = [*STEPS, ("returnable", "milestone.check_return")]


@pytest.mark.parametrize(("answer", "said"), FAILURES)
@pytest.mark.parametrize(("step", "runner"), LOOKING)
def test_whatever_way_a_runner_fails_the_step_fails_with_its_words(
    step: str, runner: str, answer: Any, said: str
) -> None:
    master = Master(**{runner.replace(".", "__"): answer})
    done = getattr(master.state, step)("m2")
    assert (done["result"], done["changes"]) == (False, {})
    assert said in done["comment"]


@pytest.mark.parametrize(("step", "runner"), STEPS)
def test_a_runner_that_the_master_does_not_have_fails_the_step(step: str, runner: str) -> None:
    missing: dict[str, Any] = {runner.replace(".", "__"): KeyError(runner)}
    master = Master(**missing)
    done = getattr(master.state, step)("m2")
    assert (done["result"], done["changes"]) == (False, {})
    assert f"{runner}: the master has no such runner -> take runner_dirs" in done["comment"]
    another: dict[str, Any] = dict.fromkeys(missing, KeyError("another"))
    master = Master(**another)
    with pytest.raises(KeyError, match="another"):
        getattr(master.state, step)("m2")


@pytest.mark.parametrize(("step", "runner"), STEPS)
def test_only_the_precheck_asks_anything_in_test_mode(step: str, runner: str) -> None:
    master = Master(test=True, precheck__milestone="nothing speaks against M2")
    done = getattr(master.state, step)("m2")
    assert done["changes"] == {}
    if step == "prechecked":
        assert (done["result"], master.seen) == (True, [("precheck.milestone", ["m2"])])
    else:
        assert (done["result"], master.seen) == (None, [])


def test_the_precheck_is_told_what_the_same_run_does_first() -> None:
    master = Master(precheck__milestone="nothing speaks against M3.media")
    assert master.state.prechecked("m3.media", first=["database"])["result"]
    assert master.seen == [("precheck.milestone", {"first": ["database"]})]


@pytest.mark.parametrize("test", [True, False])
def test_who_may_go_back_is_asked_in_test_mode_too_but_owns_nothing_then(test: bool) -> None:
    master = Master(test, milestone__check_return="M2 may be taken back")
    done = master.state.returnable("m2")
    assert (done["result"], done["changes"]) == (True, {})
    assert master.seen == [("milestone.check_return", {"claim": not test})]


def test_a_place_that_is_recorded_already_is_no_change() -> None:
    for test in (True, False):
        master = Master(test, placement__show={"front": "proxy", "managed": True})
        done = master.state.placed("m2", front="proxy")
        assert (done["result"], done["changes"]) == (True, {})
        assert master.seen == [("placement.show", [])]


def test_a_new_place_is_announced_in_test_mode_and_recorded_otherwise() -> None:
    changes = {"front": {"old": "legacy", "new": "proxy"}}
    master = Master(True, placement__show={"front": "legacy"})
    done = master.state.placed("m2", front="proxy")
    assert (done["result"], done["changes"]) == (None, changes)
    assert len(master.seen) == 1
    # What Salt itself adds to a state's arguments is no place.
    master = Master(placement__show={"front": "legacy"}, placement__put={})
    done = master.state.placed("m2", front="proxy", __pub_jid="1", order=3)
    assert done["changes"] == changes
    assert master.seen[-1] == ("placement.put", {"front": "proxy"})


@pytest.mark.parametrize(("answer", "said"), FAILURES)
def test_a_place_that_is_refused_changes_nothing(answer: Any, said: str) -> None:
    for answers in (
        {"placement__show": answer},
        {"placement__show": {}, "placement__put": answer},
    ):
        done = Master(**answers).state.placed("m2", front="nowhere")
        assert (done["result"], done["changes"]) == (False, {})
        assert said in done["comment"]


def test_a_move_is_a_change_and_one_that_was_done_is_none() -> None:
    moved = {"changed": True, "window": 3.2}
    done = Master(handover__synapse=moved).state.handed_over("m2")
    assert (done["result"], done["changes"]) == (True, {"moved": moved})
    assert "3.2 s" in done["comment"]
    done = Master(handover__synapse={"changed": False}).state.handed_over("m2")
    assert (done["result"], done["changes"]) == (True, {})


def test_a_name_that_leads_elsewhere_holds_the_retirement() -> None:
    problems = {"retcode": 1, "data": "M2.finalize refused: chat.lale.test leads to nowhere"}
    done = Master(handover__name_moved=problems).state.name_moved("m2")
    assert done["result"] is False
    assert "leads to nowhere" in done["comment"]
    done = Master(handover__name_moved="chat.lale.test leads to 198.18.0.11").state.name_moved("m2")
    assert (done["result"], done["changes"]) == (True, {})


def test_a_machine_s_keys_are_made_once() -> None:
    made = {"pki__issue": True, "secret__make": True, "secret__make_pair": True}
    master = Master(**made)
    done = master.state.keyed("directory", {"word": 20}, ["transfer_directory"])
    assert done["changes"] == {"made": ["certificate", "word", "transfer_directory"]}
    assert master.seen == [
        ("pki.issue", ["directory"]),
        ("secret.make", ["word", 20]),
        ("secret.make_pair", ["transfer_directory"]),
    ]
    there = dict.fromkeys(made, False)
    assert Master(**there).state.keyed("directory", {"word": 20}, ["a"])["changes"] == {}


@pytest.mark.parametrize(
    ("step", "runner", "words"),
    [
        ("held", "switch.hold", "is ready to be copied"),
        ("switched", "switch.to", "is there"),
        ("switched_back", "switch.back", "is there"),
    ],
)
def test_a_window_is_a_change_and_one_that_is_not_needed_is_none(
    step: str, runner: str, words: str
) -> None:
    def answered(answer: Any) -> Any:
        given: dict[str, Any] = {runner.replace(".", "__"): answer}
        return getattr(Master(**given).state, step)("database")

    taken = {"changed": True, "window": 2.9}
    done = answered(taken)
    assert (done["result"], done["changes"]) == (True, {"moved": taken})
    assert "2.9 s" in done["comment"]
    done = answered({"changed": False})
    assert (done["result"], done["changes"], done["comment"]) == (True, {}, f"database {words}")
    assert answered(REFUSED)["result"] is False
    plan = getattr(Master(test=True).state, step)("database")
    assert (plan["result"], plan["changes"]) == (None, {})
