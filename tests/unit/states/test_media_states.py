"""The states of the media's move: what they change, what they only look at, what they say."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.states.test_window_states import run

BROKEN = CommandExecutionError("no room")
COPIED = {"files": 9, "copied": 2, "bytes": 10, "seconds": 0.5}
HASHED = {"files": 9, "read": 2, "bytes": 10, "seconds": 0.5}
SERVING = ("https://s:9000", "media")


def described(present: bool) -> dict[str, Any]:
    return {"version": "1.75.2", "path": "/opt/rclone", "present": present}


def test_a_copy_says_what_it_sent_and_what_it_could_not_read() -> None:
    done = run("media_store.copied", {"media_store.copy": COPIED}, "/m", "synapse")
    assert done["changes"] == {"/m": {"copied": 2, "bytes": 10}}
    again = run("media_store.copied", {"media_store.copy": {**COPIED, "copied": 0}}, "/m", "s")
    assert (again["result"], again["changes"]) == (True, {})
    odd = {**COPIED, "unreadable": ["x (changes)"]}
    assert "x (changes)" in run("media_store.copied", {"media_store.copy": odd}, "/m", "s")[
        "comment"
    ]


@pytest.mark.parametrize(
    ("function", "called", "args"),
    [
        ("media_store.copied", "media_store.copy", ("/m", "synapse")),
        ("storage.hashed", "storage.hash", ("/m", "https://s", "b/k")),
        ("storage.serving", "storage.healthy", SERVING),
        ("storage.installed", "storage.described", ("salt://r",)),
    ],
)
def test_what_fails_is_said_and_changes_nothing(
    function: str, called: str, args: tuple[Any, ...]
) -> None:
    done = run(function, {called: BROKEN}, *args)
    assert (done["result"], done["changes"], done["comment"]) == (False, {}, "no room")


def test_a_test_run_only_announces() -> None:
    assert run("media_store.copied", {}, "/m", "s", test=True)["result"] is None
    assert run("storage.hashed", {}, "/m", "https://s", "b/k", test=True)["result"] is None
    assert run("storage.serving", {}, *SERVING, test=True)["result"] is True
    plan = run("storage.installed", {"storage.described": described(False)}, "salt://r", test=True)
    assert (plan["result"], plan["seen"]) == (None, ["storage.described"])


def test_rclone_is_installed_once() -> None:
    there = run("storage.installed", {"storage.described": described(True)}, "salt://r")
    assert (there["result"], there["changes"]) == (True, {})
    answers = {"storage.described": described(False), "storage.install": described(True)}
    done = run("storage.installed", answers, "salt://r")
    assert done["changes"] == {"rclone": {"old": None, "new": "1.75.2"}}


def test_what_answers_and_what_was_hashed_is_no_change() -> None:
    served = run("storage.serving", {"storage.healthy": {"seconds": 1}}, *SERVING)
    hashed = run("storage.hashed", {"storage.hash": HASHED}, "/m", "https://s", "b/k")
    assert [(row["result"], row["changes"]) for row in (served, hashed)] == [(True, {})] * 2
    assert "9 files, 2 of them read now" in hashed["comment"]
