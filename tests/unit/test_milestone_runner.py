"""The runner ``milestone``: who may begin, go on and go back while another process works."""

from __future__ import annotations

import os
from typing import Any

import pytest
from saltworks import milestone, owners

from tests.unit.house import House, living

ELSEWHERE = r"m1: is running already (process {}) -> wait for it, or stop that process"


def house(**record: Any) -> House:
    return House("milestone", milestones=record)


def row(made: House, name: str = "m1") -> Any:
    return made.store.rows["milestones"][name]


@pytest.mark.parametrize("step", ["begin", "check_return"])
def test_what_another_process_works_on_is_neither_begun_nor_taken_back(step: str) -> None:
    with living() as owner:
        made = house(m1={"state": "running", "owner": owner.as_row()})
        answer = getattr(made.module, step)("m1")
        assert answer["retcode"] == 1
        assert ELSEWHERE.format(owner.pid) in answer["data"]
        assert row(made)["owner"] == owner.as_row()
        # A milestone is not taken back beside another one either.
        made = house(m1={"state": "running"}, m2={"state": "running", "owner": owner.as_row()})
        assert "m2: is running already" in str(getattr(made.module, step)("m1"))
    made = house(m1={"state": "running", "owner": owner.as_row()})
    assert isinstance(getattr(made.module, step)("m1"), str), "its run has died"


def test_a_process_number_that_was_given_anew_is_nobody() -> None:
    with living() as owner:
        for other in ({"started": "1"}, {"boot_id": "of an earlier boot"}):
            made = house(m1={"state": "running", "owner": {**owner.as_row(), **other}})
            assert made.module.check_return("m1") == "M1 may be taken back"


def test_the_run_itself_and_its_children_are_no_others() -> None:
    made = house()
    assert made.module.begin("m1") == "M1 began"
    assert made.module.check_return("m1") == "M1 may be taken back"
    # Salt may take a step in a child: then the orchestration is the parent of who asks.
    parent = {**owners.this_process().as_row(), "pid": os.getppid()}
    parent["started"] = owners.stat_field(os.getppid(), 19)
    made = house(m1={"state": "running", "owner": parent})
    assert made.module.check_return("m1") == "M1 may be taken back"


def test_who_takes_back_owns_the_milestone_until_it_is_recorded() -> None:
    made = house(m1={"state": "running", "started": 5.0})
    made.module.check_return("m1")
    assert "owner" not in row(made), "who only looks owns nothing"
    made.module.check_return("m1", claim=True)
    assert row(made)["owner"] == owners.this_process().as_row()
    assert (row(made)["state"], row(made)["started"]) == ("running", 5.0)
    made.module.roll_back("m1")
    assert (row(made)["state"], "owner" in row(made)) == ("rolled-back", False)


def test_a_refused_way_back_is_not_owned() -> None:
    made = house(m1={"state": "achieved"})
    assert "would lose" in made.module.check_return("m1", claim=True)["data"]
    assert row(made) == {"state": "achieved"}


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
