"""The states over PostgreSQL's copies: the truth in test mode, and no change when all is done."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

UPSTREAM = {"host": "legacy", "port": 15432}
TAKEN = {"tables": {"t": [1, "2"]}, "begun": "12:00", "ended": "12:01"}


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise CommandExecutionError("no such luck")


def must_not(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing may be done here")


def must_be_unmasked(key: str, default: Any, unmask: bool = False) -> Any:
    assert unmask, "Salt would hand out stars in place of passwords"
    return {}


def state(test: bool = False, **salt: Any) -> Any:
    functions = {name.replace("__", "."): value for name, value in salt.items()}
    return load("_states", "pgstandby", test=test, salt=functions)


def test_a_copy_that_streams_is_not_made_again() -> None:
    row = {"receiving": "streaming"}
    done = state(True, pgstandby__status=lambda c: row).copied("copy", UPSTREAM, "15/main")
    assert (done["result"], done["changes"]) == (True, {})
    done = state(pgcopy__copy=lambda c, u: False).copied("copy", UPSTREAM, "15/main")
    assert (done["result"], done["changes"]) == (True, {})


def test_a_missing_copy_is_announced_in_test_mode_and_made_otherwise() -> None:
    salt: dict[str, Any] = {"pgstandby__status": lambda c: {}, "pgcopy__copy": must_not}
    done = state(True, **salt).copied("copy", UPSTREAM, "15/main")
    assert (done["result"], done["changes"]) == (None, {})
    done = state(pgcopy__copy=lambda c, u: True).copied("copy", UPSTREAM, "15/main")
    assert done["changes"]["copy"]["new"] == "of legacy, streaming"
    assert state(pgcopy__copy=refuse).copied("copy", UPSTREAM, "15/main")["result"] is False


def test_content_is_measured_once_for_each_switch() -> None:
    salt: dict[str, Any] = {
        "pgcontent__moment": lambda c: "0/5", "pgcontent__measure": lambda c, d: TAKEN,
    }  # fmt: skip
    never = state(pgcontent__moment=lambda c: "", pgcontent__measure=must_not)
    assert never.measured("synapse", "15/main")["changes"] == {}
    again = state(pgcontent__measured=lambda c: TAKEN, **{**salt, "pgcontent__measure": must_not})
    assert again.measured("synapse", "15/main")["changes"] == {}
    plan = state(True, pgcontent__measured=lambda c: {}, **salt).measured("synapse", "15/main")
    assert plan["result"] is None
    done = state(pgcontent__measured=lambda c: {}, **salt).measured("synapse", "15/main")
    assert done["changes"]["measured"]["new"] == "1 tables, 12:00 to 12:01"


def following(**changes: Any) -> dict[str, Any]:
    salt = {
        "pgstandby__status": lambda c: {"receiving": "streaming", "stands": "fenced"},
        "pgstandby__awake": lambda c: False,
        "pgcontent__moment": lambda c: "0/5",
        "pgcontent__measured": lambda c: TAKEN,
        "pgadmit__slots": lambda c, w: [],
        "pgstandby__follow": lambda c, u: False,
        **changes,
    }
    done: dict[str, Any] = state(**salt).following("follower", UPSTREAM, "synapse", "15/main")
    return done


def test_a_follower_is_measured_before_it_follows() -> None:
    done = following()
    assert (done["result"], done["changes"]) == (True, {})
    assert following(pgstandby__follow=lambda c, u: True)["changes"]["follows"]["new"] == "legacy"
    failed = following(
        pgcontent__measured=lambda c: {}, pgcontent__measure=refuse, pgstandby__follow=must_not
    )
    assert failed["result"] is False


WAYS = {
    "fenced": ["awake", "measure", "follow"],
    "follower": ["awake", "follow"],
    "undone": ["stand_down", "awake", "follow"],
    "promoted": ["stand_down", "copy_again", "follow"],
    "loose": ["stand_down", "copy_again", "follow"],
    "parted": ["copy_again", "follow"],
    "open": ["awake"],
}


@pytest.mark.parametrize("stands", WAYS)
def test_how_it_comes_to_follow_is_said_by_how_it_stands(stands: str) -> None:
    did: list[str] = []

    def step(name: str) -> Any:
        def act(*args: Any) -> Any:
            did.append(name)
            # The other one is asked before anything is fenced or thrown away.
            assert (UPSTREAM in args) is (name in {"stand_down", "copy_again", "follow"})
            if name == "awake" and stands == "open":
                refuse()
            return "done"

        return act

    done = following(
        pgstandby__status=lambda c: {"stands": stands},
        pgcontent__measured=lambda c: {},
        pgcontent__measure=lambda c, d: step("measure")() and TAKEN,
        **{f"pgstandby__{n}": step(n) for n in ("awake", "stand_down", "copy_again", "follow")},
    )
    assert did == WAYS[stands]
    assert done["result"] is (stands != "open")
    assert ("fenced" in done["changes"]) is ("stand_down" in WAYS[stands])
    planned = state(True, pgstandby__status=lambda c: {"stands": stands})
    words = planned.following("follower", UPSTREAM, "synapse", "15/main")["comment"]
    assert ("a copy again" in words) is ("copy_again" in WAYS[stands])


@pytest.mark.parametrize("test", [True, False])
def test_what_is_changed_is_named_and_nothing_is_no_change(test: bool) -> None:
    for answer, result in (([], True), (["role us"], None if test else True)):
        salt = {
            "pillar__get": must_be_unmasked,
            "pgadmit__missing": lambda c, r, rows, a=answer: a,
            "pgadmit__admit": lambda c, r, rows, a=answer: must_not() if test else a,
            "pgadmit__withdraw": lambda c, n, t, a=answer: a,
            "pgpublish__publish": lambda c, d, r, t, a=answer: a,
            "pgpublish__unpublish": lambda c, d, r, t, a=answer: a,
            "pgadmit__slots": lambda c, w, t, a=answer: a,
            "pgserver__bound": lambda c, w, t, a=answer: a,
            "pgserver__retire": lambda c, t, a=answer: a,
        }
        module = state(test, **salt)
        for done in (
            module.admitted("roles", "postgres:roles", [], "15/main"),
            module.withdrawn("us", "15/main"),
            module.published("synapse", "us", "15/main"),
            module.unpublished("synapse", "us", "15/main"),
            module.slots("slots", [], "15/main"),
            module.bounded("bound", True, "15/main"),
            module.retired("cluster", "15/main"),
        ):
            assert done["result"] is result
            assert list(done["changes"]) == answer


def test_without_another_cluster_there_is_nothing_to_do() -> None:
    for module, result in ((state(True), None), (state(), True)):
        for done in (
            module.copied("copy", {}, "15/main"),
            module.following("follower", {}, "synapse", "15/main"),
            module.replicated("synapse", "", "us", {}, "15/main"),
        ):
            assert (done["result"], done["changes"]) == (result, {})


def test_an_empty_database_is_announced_and_made() -> None:
    salt: dict[str, Any] = {"pillar__get": must_be_unmasked}
    plan = state(True, **salt).provided("synapse", "us", "postgres:provides:password", "15/main")
    assert (plan["result"], plan["changes"]) == (None, {})
    salt["pgserver__provide"] = lambda c, d, o, p: ["database synapse"]
    done = state(**salt).provided("synapse", "us", "postgres:provides:password", "15/main")
    assert list(done["changes"]) == ["database synapse"]


def test_rows_are_announced_and_copied_with_the_passwords_of_both_roles() -> None:
    words = ("synapse", "owner", "follower", UPSTREAM, "15/main")
    plan = state(True, pgsubscribe__copy=must_not).replicated(*words)
    assert (plan["result"], plan["changes"]) == (None, {})
    given: list[Any] = []

    def copy(*args: Any) -> bool:
        given.extend(args)
        return True

    def get(key: str, default: Any, unmask: bool = False) -> str:
        must_be_unmasked(key, default, unmask)
        return f"<{key}>"

    done = state(pgsubscribe__copy=copy, pillar__get=get).replicated(*words)
    assert done["changes"]["copy"]["new"] == "of legacy, row by row"
    assert given[2:4] == [
        {"role": "owner", "password": "<postgres:provides:password>"},
        {"role": "follower", "password": "<postgres:replication:password>"},
    ]
    same: dict[str, Any] = {"pgsubscribe__copy": lambda *a: False, "pillar__get": get}
    assert state(**same).replicated(*words)["changes"] == {}
    same["pgsubscribe__copy"] = refuse
    assert state(**same).replicated(*words)["result"] is False


def test_rows_follow_as_files_do() -> None:
    salt: dict[str, Any] = {
        "pglogical__status": lambda c, d: {"receiving": "streaming", "stands": "follower"},
        "pglogical__awake": lambda c, d: False,
        "pgcontent__moment": lambda c: "0/5",
        "pgcontent__measured": lambda c: TAKEN,
        "pgadmit__slots": lambda c, w: [],
        "pglogical__follow": lambda c, d, u: True,
    }
    words = ("follower", UPSTREAM, "synapse", "15/main", True)
    assert state(**salt).following(*words)["changes"]["follows"]["new"] == "legacy"
    assert state(True, **salt).following(*words)["result"] is True
