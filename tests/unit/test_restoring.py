"""A cluster goes back to a time: who is stopped, in which order, and who is not asked in vain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import restoring
from saltworks.errors import Refused
from saltworks.minions import MachineError

from tests.cluster import DATABASE_MAP, members
from tests.unit import worker_house
from tests.unit.test_database_runner import TWO, House

TARGET = "2026-11-28T01:30:00+00:00"
SAID: dict[str, Any] = {"said": "restored", "changes": {"database": {"changed": True}}}
STOPPED = ("database-2", "service.stop", "patroni")
STARTED = ("database-2", "service.start", "patroni")


def conducted(house: House, restore: Any = lambda: SAID) -> dict[str, Any]:
    machines: Any = worker_house.Asked(house)
    tree: Any = house
    return restoring.conducted(tree, machines, "database", TARGET, restore)


def house_of(tmp_path: Path) -> House:
    house = House(tmp_path, *TWO).own()
    house.add(*members({"sync": 1}))
    house.answers |= {"service.stop": True, "service.start": True, "door.announce": {}}
    house.answers["pgpitr.kept"] = {"stands": False, "folders": []}
    return house


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits take no time; what was slept."""
    slept: list[float] = []
    own = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(restoring, "time", own)
    return slept


def test_all_of_synapse_stops_at_once_and_main_comes_back_first(tmp_path: Path) -> None:
    told = restoring.everybody(house_of(tmp_path).placement(DATABASE_MAP))
    assert told.stop == {"synapse": ("synapse",), "sync-1": ("synapse-worker@sync-1-1",)}
    assert told.apply == (("synapse",), ("sync-1",))


def test_it_is_restored_behind_the_door_without_standbys_which_copy_it_anew(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    order: list[str] = []

    def restore() -> dict[str, Any]:
        order.extend(" ".join(map(str, row[:3])) for row in house.calls)
        return SAID

    done = conducted(house, restore)
    assert done["changes"] == SAID["changes"]
    assert "database-2 copy it anew" in done["said"]
    before = [row for row in order if "door.close" in row or "stop" in row]
    assert before[0].startswith("proxy door.close")
    assert before[-1] == "database-2 service.stop patroni"
    assert any(row.startswith("sync-1 synapse_worker.stop") for row in before)
    after = house.calls[len(order):]
    assert after.index(STARTED) < after.index(("database", "patroni.reinit", "database-2"))
    assert ("proxy", "door.open", "synapse") in after


def test_one_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    house = house_of(tmp_path)

    def restore() -> dict[str, Any]:
        raise MachineError("the store is gone")

    with pytest.raises(MachineError, match="the store is gone"):
        conducted(house, restore)
    assert STARTED in house.calls
    assert ("proxy", "door.open", "synapse") in house.calls
    assert house.asked("patroni.reinit") == []


def test_a_machine_that_does_not_answer_is_said_before_anything_is_done(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    house.silent = {"database-2", "sync-1"}
    with pytest.raises(Refused, match="database-2: has to be stopped") as refused:
        conducted(house)
    assert len(refused.value.problems) == 2
    assert [row[1] for row in house.calls] == ["pgpitr.kept"]


def test_standbys_of_which_some_did_not_stop_all_run_again(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    house.answers["service.stop"] = False
    with pytest.raises(MachineError, match=r"service.stop patroni failed on database-2\. Nothing"):
        conducted(house)
    assert STARTED in house.calls
    assert house.asked("patroni.reinit") == []


def test_a_standby_that_is_no_member_yet_is_asked_again(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    answers: list[Any] = [MachineError("reinit: database-2 is no member")] * 3

    def reinit(name: str) -> dict[str, Any]:
        if answers:
            raise answers.pop()
        return {"member": name}

    house.answers["patroni.reinit"] = reinit
    assert "later" not in conducted(house)["said"]
    assert answers == []


@pytest.mark.parametrize("row", [
    ("database-2", "service.start", "patroni"), ("database", "patroni.streaming"),
    ("database", "patroni.reinit"),
])
def test_what_fails_once_it_is_restored_is_said_and_takes_nothing_back(
    tmp_path: Path, clock: list[float], row: tuple[str, ...]
) -> None:
    house = house_of(tmp_path)
    house.failing[row] = MachineError("it does not")
    done = conducted(house)
    assert done["changes"] == SAID["changes"]
    assert "later: it does not" in done["said"]
    assert "Nothing is changed" not in done["said"]
    assert ("proxy", "door.open", "synapse") in house.calls
    assert sum(clock) <= restoring.SERVICE_SECONDS + restoring.AGAIN_SECONDS


def test_what_was_done_before_is_not_done_again(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    house.answers["pgpitr.kept"] = {"stands": True, "target": TARGET, "folders": []}
    done = conducted(house)
    assert done["changes"] == {}
    assert "was restored to" in done["said"]
    assert house.calls == [("database", "pgpitr.kept"), STARTED]


@pytest.mark.parametrize("kept", [
    {"stands": False, "target": TARGET}, {"stands": True, "target": "latest"},
])
def test_it_is_done_when_something_else_was_done_since(
    tmp_path: Path, kept: dict[str, Any]
) -> None:
    house = house_of(tmp_path)
    house.answers["pgpitr.kept"] = kept
    assert conducted(house)["changes"] == SAID["changes"]
