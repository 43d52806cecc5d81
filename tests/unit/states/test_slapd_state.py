"""A directory's states: what changed is said, a plan changes nothing, an error is an error."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

COPY = {
    "source": "/there", "host": "198.18.0.10", "key": "/key", "machine": "directory",
    "authority": "/ca",
}
STATES: dict[str, dict[str, Any]] = {"offered": {}, "copied": COPY, "fenced": {}}


def facts(read_only: bool) -> dict[str, Any]:
    return {"databases": [{"read_only": read_only}]}


def run(state: str, test: bool = False, **answers: Any) -> dict[str, Any]:
    """One state over canned answers of ``slapd.<function>``; an exception is raised."""

    def answering(answer: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    salt = {f"slapd.{name}": answering(answer) for name, answer in answers.items()}
    module = load("_states", "slapd", salt, test=test)
    done = getattr(module, state)("/folder", **STATES[state])
    assert isinstance(done, dict)
    return done


def test_a_change_is_said_and_a_second_run_says_none() -> None:
    taken = {"entries": 5, "sha256": "a" * 64, "seconds": 1}
    first = run("offered", open=True, dump={"changed": True, "entries": 5})
    assert first["changes"] == {"dumped": "5 entries", "read_only": False}
    assert run("offered", open=False, dump={"changed": False, "entries": 5})["changes"] == {}
    assert run("copied", take={**taken, "loaded": True}, answers=0.1)["changes"]
    assert run("copied", take={**taken, "loaded": False}, answers=0.1)["changes"] == {}
    assert run("fenced", facts=facts(False), fence=True)["changes"]
    assert run("fenced", facts=facts(True))["changes"] == {}


@pytest.mark.parametrize("state", STATES)
def test_a_plan_calls_nothing_that_changes(state: str) -> None:
    assert run(state, test=True, facts=facts(False))["result"] is None


def test_a_failure_is_one_and_says_why() -> None:
    error = CommandExecutionError("slapcat failed")
    for done in (
        run("offered", open=error),
        run("copied", take=error),
        run("copied", take={"loaded": True, "entries": 1, "sha256": "a", "seconds": 1},
            answers=error),
        run("fenced", facts=error),
    ):
        assert (done["result"], done["comment"], done["changes"]) == (False, "slapcat failed", {})
