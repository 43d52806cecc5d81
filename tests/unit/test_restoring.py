"""A cluster goes back to a time: who is stopped, in which order, and who is not asked in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saltworks import restoring
from saltworks.errors import Refused
from saltworks.minions import MachineError

from tests.cluster import DATABASE_MAP, members
from tests.unit import worker_house
from tests.unit.test_database_runner import TWO, House

SAID: dict[str, Any] = {"said": "restored", "changes": {"database": {"changed": True}}}
STOPPED = ("database-2", "service.stop", "patroni")
STARTED = ("database-2", "service.start", "patroni")


def conducted(house: House, restore: Any = lambda: SAID) -> dict[str, Any]:
    machines: Any = worker_house.Asked(house)
    tree: Any = house
    return restoring.conducted(tree, machines, "database", restore)


def house_of(tmp_path: Path) -> House:
    house = House(tmp_path, *TWO).own()
    house.add(*members({"sync": 1}))
    house.answers |= {"service.stop": True, "service.start": True, "door.announce": {}}
    return house


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
    assert house.calls == []
