"""Patroni's states: truth in test mode, no change without need, refusals as they are."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

WORDS: dict[str, dict[str, Any]] = {
    "settled": {"cluster": "15/main", "adopts": True, "config": __file__},
    "attuned": {"cluster": "15/main", "durability": "sync", "maximum_lag": 1, "slots": [],
                "adopts": True, "config": __file__},
    "roles": {"cluster": "15/main"},
    "retired": {"cluster": "15/main", "config": __file__},
}  # fmt: skip

#: State → function behind it, and its answer where something is to do, and where not.
BEHIND: dict[str, tuple[str, Any, Any]] = {
    "settled": (
        "settle",
        {"what": "clear", "why": "empty", "changed": ["/data"]},
        {"what": "attach", "why": "ours", "changed": []},
    ),
    "attuned": ("attune", {"ttl": {"old": None, "new": 12}}, {}),
    "roles": ("roles", ["role a"], []),
    "retired": ("retire", ["/data"], []),
}


def state(test: bool, name: str, answer: Any) -> Any:
    def behind(*given: Any) -> Any:
        # The last says whether it is only to be told.
        assert given[-1] is test
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pillar(key: str, default: Any, unmask: bool = False) -> Any:
        assert unmask
        return {"role": key.rpartition(":")[2], "password": "s3cret"}

    salt = {f"patroni_machine.{BEHIND[name][0]}": behind, "pillar.get": pillar}
    return load("_states", "saltworks_patroni", salt, test)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("test", [True, False])
def test_what_is_to_do(name: str, test: bool) -> None:
    module = state(test, name, BEHIND[name][1])
    done = getattr(module, name)("x", **WORDS[name])
    assert done["result"] is (None if test else True)
    assert done["changes"]
    assert "s3cret" not in str(done)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("test", [True, False])
def test_nothing_to_do(name: str, test: bool) -> None:
    module = state(test, name, BEHIND[name][2])
    done = getattr(module, name)("x", **WORDS[name])
    assert (done["result"], done["changes"]) == (True, {})


@pytest.mark.parametrize("name", ["settled", "attuned"])
def test_before_there_is_a_configuration_a_test_run_says_so(name: str) -> None:
    module = load("_states", "saltworks_patroni", {}, True)
    done = getattr(module, name)("x", **{**WORDS[name], "config": "/nowhere"})
    assert done["result"] is None
    assert "not configured here yet" in done["comment"]


@pytest.mark.parametrize("name", WORDS)
def test_a_refusal_is_told_as_it_is(name: str) -> None:
    module = state(False, name, CommandExecutionError("no such luck"))
    done = getattr(module, name)("x", **WORDS[name])
    assert (done["result"], done["comment"], done["changes"]) == (False, "no such luck", {})


def test_streaming_is_not_waited_for_in_a_test_run() -> None:
    module = load("_states", "saltworks_patroni", {}, True)
    assert module.streaming("x", 5, "/c")["result"] is True
    salt = {"patroni.streaming": lambda *given: {"role": "replica", "lag": 7, "seconds": 1.5}}
    module = load("_states", "saltworks_patroni", salt)
    assert module.streaming("x", 5, "/c")["comment"] == "replica, 7 bytes behind, after 1.5 s"
