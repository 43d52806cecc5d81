"""The thin states of a window: what they change, what they only look at, what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

Answers = dict[str, Any]


class Salt(dict[str, Any]):
    """``__salt__`` with canned answers, all calls in ``seen``; an unknown one is a KeyError."""

    def __init__(self, answers: Answers) -> None:
        self.seen: list[str] = []
        super().__init__({name: self._of(name, answer) for name, answer in answers.items()})

    def _of(self, name: str, answer: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def run(function: str, answers: Answers, *args: Any, test: bool = False, **kwargs: Any) -> Any:
    """One state's return, with the calls it made under ``seen``."""
    name, _, state = function.partition(".")
    salt = Salt(answers)
    done = getattr(load("_states", name, salt=salt, test=test), state)(*args, **kwargs)
    return {**done, "seen": salt.seen}


BROKEN = CommandExecutionError("no such luck")
#: A state, its arguments and the one execution function that it calls.
ACTING = [
    ("synapse_upgrade.decided", ("/c", "/b", "m1"), "synapse_upgrade.way"),
    ("synapse_upgrade.nothing_lost", ("/c", "/b", "m1"), "synapse_upgrade.lost"),
    ("synapse_upgrade.receipts_counted", ("/c", "synapse"), "service.status"),
    ("transfer.pulled", ("/m", "/old", "198.18.0.10", "/k", "synapse"), "transfer.pull"),
    ("homeserver.answering", ("http://s",), "homeserver.healthy"),
    ("door.drained", ("window", [8008]), "door.drain"),
]


@pytest.mark.parametrize(("function", "args", "called"), ACTING)
def test_test_mode_only_announces(function: str, args: tuple[Any, ...], called: str) -> None:
    done = run(function, {}, *args, test=True)
    assert (done["result"], done["seen"]) == (None, [])
    # Alone in its orchestration's step, it would not be shown there without a change.
    assert bool(done["changes"]) is (function == "transfer.pulled")
    assert "would" in done["comment"]


@pytest.mark.parametrize(("function", "args", "called"), ACTING)
def test_a_failure_is_the_comment(function: str, args: tuple[Any, ...], called: str) -> None:
    done = run(function, {called: BROKEN}, *args)
    assert (done["result"], done["changes"], done["comment"]) == (False, {}, "no such luck")


def test_a_migration_that_would_take_long_asks_for_a_choice() -> None:
    way = {"way": "needs-choice", "words": "It takes 900 s."}
    done = run("synapse_upgrade.decided", {"synapse_upgrade.way": way}, "/c", "/b", "m1")
    assert done["result"] is False
    assert "Write upgrade.background_updates into the cluster map" in done["comment"]
    way = {"way": "online", "words": "Online, as chosen."}
    done = run("synapse_upgrade.decided", {"synapse_upgrade.way": way}, "/c", "/b", "m1", "online")
    assert (done["result"], done["comment"]) == (True, "Online, as chosen.")


def test_what_was_lost_is_named() -> None:
    def lost(*found: str) -> Any:
        answers = {"synapse_upgrade.lost": list(found)}
        return run("synapse_upgrade.nothing_lost", answers, "/c", "/b", "m1")

    assert lost()["result"] is True
    assert lost("count of users: was 2, is 1")["result"] is False
    assert "count of users" in lost("count of users: was 2, is 1")["comment"]


@pytest.mark.parametrize(
    ("runs", "place", "changed"),
    [(True, 700, False), (False, 700, True), (False, 0, False), (False, None, False)],
)
def test_receipts_are_counted_anew_once_and_never_under_a_running_server(
    runs: bool, place: int | None, changed: bool
) -> None:
    answers = {
        "service.status": runs,
        "synapse_upgrade.receipts_counted_from": place,
        "synapse_upgrade.count_all_receipts": None,
    }
    done = run("synapse_upgrade.receipts_counted", answers, "/c", "synapse")
    assert done["result"] is True
    assert ("synapse_upgrade.count_all_receipts" in done["seen"]) is changed
    assert bool(done["changes"]) is changed


@pytest.mark.parametrize(("files", "deleted"), [(0, 0), (4, 0), (0, 1)])
def test_a_copy_that_was_complete_is_no_change(files: int, deleted: int) -> None:
    answers = {"transfer.pull": {"files": files, "deleted": deleted, "seconds": 0.1}}
    done = run("transfer.pulled", answers, "/m", "/old", "198.18.0.10", "/k", "synapse")
    assert done["result"] is True
    wanted = {"/m": {"copied": files, "deleted": deleted}} if files or deleted else {}
    assert done["changes"] == wanted


@pytest.mark.parametrize(
    ("wanted", "result"), [("", True), ("1.163.2", True), ("1.164.0", False)]
)
def test_another_version_than_the_wanted_is_a_failure(wanted: str, result: bool) -> None:
    answers = {"homeserver.healthy": {"seconds": 1.0, "version": "1.163.2"}}
    done = run("homeserver.answering", answers, "http://s", version=wanted)
    assert (done["result"], done["changes"]) == (result, {})
    assert "1.163.2" in done["comment"]


OPEN = {"state": "open", "target": "old"}
CLOSED = {"state": "closed", "target": None}


def test_nobody_is_told_where_the_door_is_closed_already() -> None:
    done = run("door.announced", {"door.status": CLOSED}, "m2", seconds=31)
    assert (done["result"], done["changes"]) == (True, {})


def test_clients_are_told_before_and_it_counts_as_a_change() -> None:
    answers = {"door.status": OPEN, "door.announce": 31.0}
    done = run("door.announced", answers, "m2", seconds=31)
    assert done["result"] is True
    assert done["changes"] == {"door": {"old": "open", "new": "announced 31 s"}}
    announced = run("door.announced", {"door.status": OPEN}, "m2", seconds=31, test=True)
    assert (announced["result"], announced["seen"]) == (None, ["door.status"])
    failed = run(
        "door.announced", {"door.status": OPEN, "door.announce": BROKEN}, "m2", seconds=31
    )
    assert (failed["result"], failed["changes"]) == (False, {})


def test_a_door_is_closed_once() -> None:
    done = run("door.closed", {"door.status": OPEN, "door.close": {"seconds": 0.2}}, "window")
    assert done["changes"] == {"door": {"old": "open to old", "new": "closed"}}
    again = run("door.closed", {"door.status": CLOSED}, "window")
    assert (again["result"], again["changes"]) == (True, {})
    between = {"door.status": {"state": "between", "target": None}, "door.close": BROKEN}
    assert run("door.closed", between, "window")["result"] is False


def test_quiet_is_no_change() -> None:
    done = run("door.drained", {"door.drain": {"seconds": 0.4}}, "window", [8008])
    assert (done["result"], done["changes"]) == (True, {})
    assert "0.4 s" in done["comment"]


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(
    ("status", "result"),
    [
        (OPEN, True),
        (CLOSED, True),
        ({"state": "open", "target": "new"}, False),
        # The link of a closed door may still name the target it had.
        ({"state": "between", "target": "new"}, True),
    ],
)
def test_the_way_back_is_refused_only_where_people_write_already(
    status: dict[str, Any], result: bool, test: bool
) -> None:
    done = run("door.kept_from", {"door.status": status}, "new", test=test)
    assert (done["result"], done["changes"]) == (result, {})
    assert ("would lose" in done["comment"]) is not result
