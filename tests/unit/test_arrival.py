"""Machines that were let in come into service with the milestone, or are named with the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import members, owners

from tests import cluster
from tests.unit import house
from tests.unit.house import held


class House(house.House):
    """Members that come by as many looks as ``steps`` has; each look takes 100 s."""

    def __init__(self, *names: str) -> None:
        super().__init__("reconcile")
        self.steps: list[Callable[[], None]] = []
        self.commands: list[list[str]] = []
        self.clock = 0.0
        self.store.rows["registry"] = {
            name: asdict(cluster.member(name, "sync", number, "joining"))
            for number, name in enumerate(names, 1)
        }
        self.store.rows["joins"] = {}
        errors = {"CalledProcessError", "TimeoutExpired"}
        vars(self.module).update(
            __opts__={"config_dir": "/etc/salt"},
            time=SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep, time=lambda: 0.0),
            subprocess=SimpleNamespace(
                run=self.run, **{name: getattr(subprocess, name) for name in errors}
            ),
        )

    def run(self, command: list[str], **_: Any) -> None:
        self.commands.append(command)
        self.look()

    def sleep(self, seconds: float) -> None:
        self.clock += 100
        self.look()

    def look(self) -> None:
        if self.steps:
            self.steps.pop(0)()

    def comes(self, name: str) -> None:
        self.store.rows["registry"][name]["state"] = "ready"
        self.store.rows["joins"][name] = {"generation": 1, "finished": 1.0}

    def busy(self) -> None:
        self.store.rows["lock"] = held(owners.this_process(), "reconcile: join of sync-2")


def test_they_are_waited_for_as_long_as_something_is_done_about_them() -> None:
    tree = House("sync-1", "sync-2")
    tree.steps = [lambda: tree.comes("sync-1"), *[tree.busy] * 5, lambda: tree.comes("sync-2")]
    assert tree.module.coming() == ["sync-1", "sync-2"]
    answer = tree.module.arrive()
    assert answer["said"] == "sync-1, sync-2 came into service"
    assert answer["changes"] == {"joined": ["sync-1", "sync-2"]}
    assert tree.commands[0][0] == sys.executable
    assert tree.commands[0][-2:] == ["--config-dir=/etc/salt", "reconcile.run"]
    assert tree.module.arrive() == {"said": "nobody is on the way in", "changes": {}}
    assert len(tree.commands) == 2, "others may have been let in by hand"


def test_who_does_not_come_is_named_with_what_it_waits_for() -> None:
    tree = House("sync-1", "sync-2", "sync-3")
    # What failed before this may have been mended: it counts once it was tried again.
    tree.store.rows["joins"]["sync-1"] = {"error": "disk full"}
    tree.steps = [lambda: tree.comes("sync-1")]
    tree.store.rows[members.PASSES] = {"waits": {"sync-2": "its salt-minion does not answer"}}
    said = tree.module.arrive()["data"]
    assert said.startswith("not in service: sync-2: its salt-minion does not answer; sync-3: ")
    assert "nothing was done about it for 120 s. Other processes serve" in said
    assert tree.clock == 200


def test_a_join_that_failed_ends_the_wait_when_nobody_else_is_coming() -> None:
    tree = House("sync-1")
    tree.store.rows["joins"]["sync-1"] = {"error": "disk full"}
    assert "sync-1: disk full. Other" in tree.module.arrive()["data"]
    assert tree.clock == 0


def test_who_is_gone_meanwhile_has_not_come() -> None:
    tree = House("sync-1")
    tree.steps = [lambda: tree.store.rows["registry"].clear()]
    assert tree.module.arrive()["changes"] == {}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (subprocess.CalledProcessError(1, "", "", "no master"), "reconcile.run failed: no master"),
        (subprocess.TimeoutExpired("", 1), "did not end within 3600 s"),
    ],
)
def test_passes_that_fail_or_hang_are_told(error: Exception, said: str) -> None:
    tree = House("sync-1")

    def fails() -> None:
        raise error

    tree.steps = [fails]
    answer = tree.module.arrive()
    assert (said in answer["data"], answer["retcode"]) == (True, 1)
