"""The runner ``reconcile``: a pass does what was decided, one after the other, and says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import admission, lock, members, plan
from saltworks.errors import Problem, Refused
from saltworks.membership import Declared
from saltworks.minions import MachineError
from saltworks.reconcile import Seen
from saltworks.registry import Member

from tests.render.stages import AFTER_M3, MAP
from tests.unit import house
from tests.unit.house import held, living

KEY = "a" * 64


def member(minion: str, state: Any) -> dict[str, Member]:
    return {minion: Member(minion, "sync", "", state, "2026-11-26T17:00:00Z", 1, KEY)}


def failed(comment: str) -> dict[str, Any]:
    rows = {
        "a": {"__id__": "join-healthy", "result": False, "comment": comment},
        "b": {"__id__": "join-caught-up", "result": False,
              "comment": "One or more requisite failed: join-healthy"},
        "c": {"__id__": "join-begun", "result": True, "comment": "well"},
    }  # fmt: skip
    return {"data": {"salt_master": rows}, "retcode": 1, "outputter": "highstate"}


class House(house.House):
    """A tree with records; orchestrations answer as they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
        super().__init__("reconcile")
        self.ran: list[Any] = []
        self.answer: Any = {"data": {"salt_master": {}}, "retcode": 0}
        vars(self.module).update(__opts__={}, _orchestrated=self.run)
        for name in ("Keys", "Machines"):
            vars(self.module)[name] = lambda opts: None
        monkeypatch.setattr(self.module.log, "propagate", False)
        monkeypatch.setattr(self.module.log, "handlers", [logging.NullHandler()])
        #: What is seen, one look after the other; the last one again and again.
        self.looks = [seen]
        monkeypatch.setattr(
            members,
            "gathered",
            lambda *_: self.looks.pop(0) if len(self.looks) > 1 else self.looks[0],
        )
        monkeypatch.setattr(members, "swept", lambda *_: None)

    def map(self) -> Any:
        return MAP

    def placement(self, cmap: Any) -> plan.Placement:
        return plan.Placement.recorded(cmap, self.store.rows.get("placement", AFTER_M3))

    def run(self, name: str, pillar: dict[str, Any]) -> Any:
        self.ran.append((name, pillar))
        assert self.store.rows["lock"], "the cluster is ours meanwhile"
        return self.answer

    def one_pass(self) -> dict[str, Any]:
        self.module._pass(self)
        row: dict[str, Any] = self.store.rows[members.PASSES]
        return row


def two(**more: Any) -> Seen:
    rows = {**member("sync-1", "joining"), **member("sync-2", "draining")}
    declared = {name: Declared("sync") for name in rows}
    known = {name: KEY for name in rows}
    return Seen(rows, declared=declared, keys=known, answering=set(rows), **more)


def test_a_pass_runs_one_orchestration_after_the_other_and_frees_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two())
    row = house.one_pass()
    assert house.ran == [
        ("orch.worker.join", {"worker": "sync-1"}),
        ("orch.worker.leave", {"worker": "sync-2"}),
    ]
    assert row["done"] == [
        "join of sync-1, because it was admitted: done",
        "leave of sync-2, because it was on its way out: done",
    ]
    assert (row["count"], house.store.rows["lock"]) == (1, {})
    assert house.one_pass()["count"] == 2


def test_a_join_that_fails_is_written_down_and_the_next_machine_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two())
    house.answer = failed("no answer")
    row = house.one_pass()
    assert len(house.ran) == 2
    assert row["done"][0].endswith(": join-healthy: no answer")
    noted = house.store.rows["joins"]
    assert (noted["sync-1"]["failures"], noted["sync-1"]["error"]) == (
        1, "join-healthy: no answer",
    )  # fmt: skip
    left = noted["sync-2"]["leaving"]
    assert left["error"] == "leave: join-healthy: no answer"
    house.answer = {"data": {"salt_master": {}}, "retcode": 0}
    house.one_pass()
    assert "leaving" not in house.store.rows["joins"]["sync-2"]
    house.answer = {"data": "SLS orch.worker.join is not available", "retcode": 1}
    assert "is not available" in house.one_pass()["done"][0]


def test_while_somebody_else_works_a_pass_does_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two())
    with living() as owner:
        house.store.rows["lock"] = held(owner, "milestone m3.media")
        (said,) = house.one_pass()["done"]
        assert "milestone m3.media: is running already" in said
        assert (house.ran, house.store.rows["lock"]["reason"]) == ([], "milestone m3.media")


def test_what_was_let_in_is_settled_and_a_refusal_stops_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settled: list[tuple[str, str]] = []

    def settle(house: Any, keys: Any, minion: str, own: str) -> None:
        settled.append((minion, own))
        if minion == "sync-8":
            raise Refused("admission", [Problem(minion, "its key went away", "")])

    monkeypatch.setattr(admission, "settle", settle)
    names = ("sync-8", "sync-9")
    seen = Seen(
        {}, declared={name: Declared("sync") for name in names}, let_in=dict.fromkeys(names, KEY)
    )
    house = House(monkeypatch, seen)
    done = house.one_pass()["done"]
    assert settled == [("sync-8", KEY), ("sync-9", KEY)]
    assert "its key went away" in done[0]
    assert done[1] == "settle of sync-9, because its key was let in"


def test_a_map_that_is_wrong_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, Seen({}))

    def refuses(*_: Any) -> Seen:
        raise Refused("cluster map", [Problem("cluster.x", "is wrong", "correct it")])

    monkeypatch.setattr(members, "gathered", refuses)
    assert "cluster.x: is wrong" in house.one_pass()["done"][0]


def test_behind_a_door_that_a_dead_run_has_shut_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two())
    window = {**AFTER_M3, "redis": "redis", "upcoming": {"redis": ""}, "moving": True}
    house.store.rows["placement"] = window
    (done,) = house.one_pass()["done"]
    assert "orch.m4.workers.rollback, which goes on from there" in done
    assert (house.ran, house.store.rows.get("lock")) == ([], {})
    house.store.rows["placement"] = {**AFTER_M3, "redis": "redis"}
    assert len(house.one_pass()["done"]) == len(house.ran) > 0


def test_after_each_action_it_is_looked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was to leave is dead by then, and who was to join has come by itself."""
    house = House(monkeypatch, two())
    known = dict(two().members)
    declared = {name: Declared("sync") for name in known}
    later = Seen(known, declared=declared, barred=dict.fromkeys(known, "no bus"))
    house.looks.append(later)
    house.one_pass()
    assert [name for name, _ in house.ran] == ["orch.worker.join", "orch.worker.lose"]
    assert house.store.rows[members.PASSES]["waits"] == {"sync-1": "no bus"}


def test_what_is_being_told_is_finished_and_when_that_fails_nothing_else_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two(untold={"sync-2"}))
    house.looks.append(two())
    house.one_pass()
    assert [name for name, _ in house.ran] == [
        "orch.worker.tell", "orch.worker.join", "orch.worker.leave",
    ]  # fmt: skip
    house = House(monkeypatch, two(untold={"sync-2"}))
    house.answer = failed("main does not start")
    assert house.one_pass()["done"] == [
        "tell of sync-2, because not everybody was told of it: join-healthy: main does not start"
    ]
    assert [name for name, _ in house.ran] == ["orch.worker.tell"]


def test_a_late_telling_that_fails_behind_the_door_is_finished_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = two(late={"sync-1": 0.0})
    house = House(monkeypatch, late)
    house.looks = [late, two(untold={"sync-1"}), two(untold={"sync-1"})]
    house.answer = failed("the door is shut")
    house.one_pass()
    assert [name for name, _ in house.ran] == ["orch.worker.tell"] * 2, "and then by the next pass"


def test_who_runs_it_by_hand_does_not_wait_for_what_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two(not_before={"sync-1": time.time() + 900}))
    house.module._pass(house, patient=True)
    tried = [pillar["worker"] for name, pillar in house.ran if name == "orch.worker.join"]
    house.module._pass(house, patient=False)
    again = [pillar["worker"] for name, pillar in house.ran if name == "orch.worker.join"]
    assert (tried, again) == ([], ["sync-1"])


def test_what_ends_a_pass_in_its_midst_loses_nothing_that_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = MachineError("no answer")
    house = House(monkeypatch, two())
    run = house.run

    def breaks(name: str, pillar: dict[str, Any]) -> Any:
        if name == "orch.worker.leave":
            raise error
        return run(name, pillar)

    vars(house.module)["_orchestrated"] = breaks
    row = house.one_pass()
    assert row["done"] == ["join of sync-1, because it was admitted: done", str(error)]
    assert house.store.rows["lock"] == {}


def test_a_window_that_opens_before_the_lock_is_had_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(monkeypatch, two())
    window = {**AFTER_M3, "redis": "redis", "upcoming": {"redis": ""}, "moving": True}
    take = lock.take

    def late(*args: Any) -> None:
        house.store.rows["placement"] = window
        take(*args)

    monkeypatch.setattr(lock, "take", late)
    house.one_pass()
    assert house.ran == []


def test_a_loss_that_was_none_is_blamed_on_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    well = member("sync-1", "ready")
    declared = {"sync-1": Declared("sync")}
    house = House(monkeypatch, Seen(well, declared=declared, healthy={"sync-1": False}))
    house.answer = failed("answers at the front after all")
    house.one_pass()
    assert house.store.rows["joins"]["sync-1"]["leaving"]["what"] == "lose"
    house.looks[:] = [Seen(well, untold={"sync-2"})]
    house.one_pass()
    assert "leaving" in house.store.rows["joins"]["sync-1"], "nobody has looked at it"
    house.looks[:] = [Seen(well, declared=declared)]
    house.one_pass()
    assert house.store.rows["joins"]["sync-1"] == {}


@pytest.mark.parametrize(("handle", "patience"), [(None, [False, True, True]), (3, [True] * 3)])
def test_what_failed_is_tried_at_once_by_the_first_pass_of_a_hand_alone(
    monkeypatch: pytest.MonkeyPatch, handle: int | None, patience: list[bool]
) -> None:
    tree, seen = House(monkeypatch, Seen({})), list[bool]()

    def make(records: Any, once: Callable[[], None], given: int | None) -> int:
        assert given == handle
        for _ in range(3):
            once()
        return 3

    vars(tree.module).update(
        _pass=lambda _, patient: seen.append(patient), passes=SimpleNamespace(make=make)
    )
    vars(tree)["records"] = ""
    assert tree.module.run(handle) == "3 passes were made"
    assert seen == patience
