"""The runner ``milestone``: who may begin, go on and go back while another process works."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
from saltworks import milestone, owners, plan

from tests.render.stages import AFTER_M2, MAP
from tests.unit.house import House, held, living

ELSEWHERE = r"is running already (process {}) -> wait for it, or stop that process"


def house(lock: dict[str, Any] | None = None, **record: Any) -> House:
    return House("milestone", milestones=record, lock=lock or {})


def row(made: House, name: str = "m1") -> Any:
    return made.store.rows["milestones"][name]


def holder(made: House) -> Any:
    return made.store.rows["lock"].get("owner")


@pytest.mark.parametrize("step", ["begin", "check_return"])
def test_what_another_process_works_on_is_neither_begun_nor_taken_back(step: str) -> None:
    with living() as owner:
        for other in ("milestone m1", "milestone m2", "reconcile: join of sync-2"):
            hold = held(owner, other)
            made = house(hold, m1={"state": "running"}, m2={"state": "running"})
            answer = getattr(made.module, step)("m1")
            assert answer["retcode"] == 1
            assert f"{other}: {ELSEWHERE.format(owner.pid)}" in answer["data"]
            assert made.store.rows["lock"] == hold
    made = house(hold, m1={"state": "running"})
    assert isinstance(getattr(made.module, step)("m1"), str), "its run has died"


def test_a_process_number_that_was_given_anew_is_nobody() -> None:
    with living() as owner:
        earlier = dataclasses.replace(owner, boot_id="of an earlier boot")
        for other in (dataclasses.replace(owner, started="1"), earlier):
            made = house(held(other, "milestone m1"), m1={"state": "running"})
            assert made.module.check_return("m1") == "M1 may be taken back"


def test_the_run_itself_and_its_children_are_no_others() -> None:
    made = house()
    assert made.module.begin("m1") == "M1 began"
    assert made.module.check_return("m1") == "M1 may be taken back"
    # Salt may take a step in a child: then the orchestration is the parent of who asks.
    started = owners.stat_field(os.getppid(), 19)
    assert started is not None
    parent = dataclasses.replace(owners.this_process(), pid=os.getppid(), started=started)
    made = house(held(parent, "milestone m1"), m1={"state": "running"})
    assert made.module.check_return("m1") == "M1 may be taken back"


def test_who_takes_back_holds_the_lock_until_it_is_recorded() -> None:
    made = house(m1={"state": "running", "started": 5.0})
    made.module.check_return("m1")
    assert holder(made) is None, "who only looks holds nothing"
    made.module.check_return("m1", claim=True)
    assert holder(made) == owners.this_process().as_row()
    assert (row(made)["state"], row(made)["started"]) == ("running", 5.0)
    made.module.roll_back("m1")
    assert (row(made)["state"], holder(made)) == ("rolled-back", None)


def test_a_refused_way_back_takes_no_lock() -> None:
    made = house(m1={"state": "achieved"})
    assert "would lose" in made.module.check_return("m1", claim=True)["data"]
    assert (row(made), holder(made)) == ({"state": "achieved"}, None)


def test_the_verdict_reaches_the_record_and_nothing_is_achieved_without_one() -> None:
    made = house()
    made.module.begin("m1")
    assert "was not verified" in made.module.achieve("m1")["data"]
    assert row(made)["state"] == "running"
    record = made.store.rows["milestones"]
    said = "verified: 16 checks, Synapse 1.163.2 on legacy"
    record["m1"] = milestone.verified(record, "m1", said)
    # Of a run that died after it; another one may end otherwise.
    made.module.begin("m1")
    assert "was not verified" in made.module.achieve("m1")["data"]
    record = made.store.rows["milestones"]
    record["m1"] = milestone.verified(record, "m1", said)
    assert made.module.achieve("m1") == "M1 is achieved"
    shown, *_ = made.module.status()
    assert (shown["state"], shown["verdict"]) == ("achieved", said)
    # A verdict of later is not of that run.
    record = made.store.rows["milestones"]
    assert milestone.verified(record, "m1", "verified: 1 checks") == record["m1"]


class Moving(House):
    """A run has died in the database's window."""

    def __init__(self, **record: Any) -> None:
        upcoming = {"upcoming": {"database": "database"}, "moving": True}
        super().__init__("milestone", milestones=record, placement={**AFTER_M2, **upcoming})

    def map(self) -> Any:
        return MAP

    def placement(self, cmap: Any) -> plan.Placement:
        at = plan.Placement.recorded(cmap, self.store.rows["placement"])
        return dataclasses.replace(at, telling=tuple(self.store.rows.get("told", ())))


def test_behind_an_open_window_nothing_else_begins_goes_back_or_is_given_up() -> None:
    done, running = {"state": "achieved"}, {"state": "running"}
    made = Moving(m1=done, m2=done, **{"m3.database": running, "m3.media": running})
    said = "is on its way to its machine: a run is in its window, or died there"
    for step in ("begin", "check_return"):
        answer = getattr(made.module, step)("m3.media")
        assert said in answer["data"]
        assert "orch.m3.database, which goes on from there" in answer["data"]
    assert row(made, "m3.media") == running
    assert made.module.check_return("m3.database") == "M3.database may be taken back"
    assert made.module.begin("m3.database") == "M3.database began"
    made = Moving(**{"m3.media": done})
    made.module.arm("m3.media.finalize")
    assert said in made.module.check_catch("m3.media.finalize")["data"]
    made.store.rows["placement"]["moving"] = False
    made.module.arm("m3.media.finalize")
    assert made.module.check_catch("m3.media.finalize") == "m3.media.finalize was armed"


def test_while_others_are_told_of_a_worker_no_milestone_begins_goes_back_or_is_given_up() -> None:
    done, running = {"state": "achieved"}, {"state": "running"}
    made = Moving(m1=done, m2=done, **{"m3.media": running, "m3.auth": done})
    made.store.rows["placement"]["moving"] = False
    assert made.module.check_return("m3.media") == "M3.media may be taken back"
    made.store.rows["told"] = {"writer-1": {"stop": {}, "apply": []}}
    said = "writer-1: others are being told of it, or that has failed, and the door may be shut"
    for step in ("begin", "check_return"):
        assert said in getattr(made.module, step)("m3.media")["data"]
    made.module.arm("m3.auth.finalize")
    assert said in made.module.check_catch("m3.auth.finalize")["data"]
