"""Machines that were let in come into service with the milestone, or are named with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import admission, members, owners

from tests import cluster
from tests.unit import house
from tests.unit.house import held


class House(house.House):
    """Members; something is done about them at each look, which takes 50 s; then passes end."""

    def __init__(self, *names: str) -> None:
        super().__init__("reconcile")
        self.steps: list[Callable[[], None]] = []
        self.poked, self.records = 0, ""
        self.clock = 1000.0
        self.store.rows["registry"] = {
            name: asdict(cluster.member(name, "sync", number, "joining"))
            for number, name in enumerate(names, 1)
        }
        self.store.rows["joins"] = {}
        self.looks()
        self.clock += 1
        vars(self.module).update(
            __opts__={},
            passes=SimpleNamespace(poke=self.poke, starter=lambda _: None),
            time=SimpleNamespace(
                monotonic=lambda: self.clock, time=lambda: self.clock, sleep=self.sleep
            ),
        )

    def poke(self, *_: Any) -> None:
        self.poked += 1

    def sleep(self, seconds: float) -> None:
        self.clock += 50
        (self.steps.pop(0) if self.steps else self.looks)()

    def looks(self) -> None:
        """A pass has ended."""
        self.store.rows["lock"] = {}
        waits = self.store.rows.get(members.PASSES, {}).get("waits", {})
        self.store.rows[members.PASSES] = {"began": self.clock, "waits": waits}

    def comes(self, name: str) -> None:
        self.store.rows["registry"][name]["state"] = "ready"
        self.store.rows["joins"][name] = {"generation": 1, "finished": 1.0}

    def fails(self, name: str) -> None:
        self.store.rows["joins"][name] = {"error": "disk full"}

    def holds(self, reason: str) -> None:
        row = held(owners.this_process(), reason)
        self.store.rows["lock"] = {**row, "expires": 1e12}


def test_they_are_waited_for_as_long_as_something_is_done_about_them() -> None:
    tree = House("sync-1", "sync-2")
    busy = [lambda: tree.holds("reconcile: join of sync-2")] * 9
    tree.steps = [lambda: tree.comes("sync-1"), *busy, lambda: tree.comes("sync-2")]
    # What failed before may have been mended.
    tree.fails("sync-1")
    assert tree.module.coming() == ["sync-1", "sync-2"]
    answer = tree.module.arrive()
    assert answer["said"] == "sync-1, sync-2 came into service"
    assert answer["changes"] == {"joined": ["sync-1", "sync-2"]}
    assert tree.module.arrive() == {"said": "nobody is on the way in", "changes": {}}
    assert tree.poked == 2, "others may have been let in by hand"


def test_a_standby_is_waited_for_once_there_is_a_cluster() -> None:
    tree = House("sync-1")
    row = asdict(cluster.member("database-2", "database", 2, "joining"))
    tree.store.rows["registry"]["database-2"] = row
    assert tree.module.coming() == ["sync-1"]
    tree.steps = [lambda: tree.comes("sync-1")]
    assert tree.module.arrive()["changes"] == {"joined": ["sync-1"]}
    tree.store.rows["placement"] = {"clustered": True}
    assert tree.module.coming() == ["database-2"]


def test_one_that_becomes_a_member_meanwhile_counts_as_well() -> None:
    tree = House("sync-1")
    row = tree.store.rows["registry"].pop("sync-1")

    def settles() -> None:
        tree.store.rows["registry"]["sync-1"] = row
        tree.comes("sync-1")

    tree.steps = [settles]
    assert tree.module.arrive()["changes"] == {"joined": ["sync-1"]}


def test_who_does_not_come_is_named_with_what_it_waits_for() -> None:
    tree = House("sync-1", "sync-2", "sync-3", "sync-4")
    tree.steps = [lambda: tree.comes("sync-1"), lambda: tree.fails("sync-4")]
    waits = {"sync-2": "its salt-minion does not answer"}
    tree.store.rows[members.PASSES]["waits"] = waits
    said = tree.module.arrive()["data"]
    assert said.startswith("not in service: sync-2: its salt-minion does not answer; sync-3: ")
    assert "nothing was done about it for 120 s; sync-4: disk full. Other processes serve" in said


def test_a_join_that_failed_ends_the_wait_when_nobody_else_is_coming() -> None:
    tree = House("sync-1")
    tree.steps = [lambda: tree.fails("sync-1")]
    assert "sync-1: disk full. Other" in tree.module.arrive()["data"]
    assert tree.clock <= 1151


def test_who_is_gone_meanwhile_has_not_come_unless_an_operator_wants_that() -> None:
    tree = House("sync-1")
    tree.steps = [lambda: tree.store.rows["registry"]["sync-1"].update(state="gone")]
    assert tree.module.arrive()["data"].startswith("not in service: sync-1: ")
    tree = House("sync-1")
    tree.store.rows[admission.OUT] = {"sync-1": {}}
    tree.steps = [lambda: tree.store.rows["registry"]["sync-1"].update(state="gone")]
    assert tree.module.arrive()["changes"] == {}


def test_somebody_else_who_has_the_cluster_is_not_waited_for() -> None:
    tree = House("sync-1")
    tree.steps = [lambda: tree.holds("milestone m3.media")]
    said = tree.module.arrive()["data"]
    assert "sync-1: milestone m3.media has the cluster's lock" in said


@pytest.mark.parametrize("names", [(), ("sync-1",)])
def test_that_nobody_has_looked_is_no_success(names: tuple[str, ...]) -> None:
    tree = House(*names)
    tree.steps = [lambda: None] * 9
    assert "reconcile made no pass within 120 s" in tree.module.arrive()["data"]
