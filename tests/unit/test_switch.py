"""A part's window: the order of its steps, what they hand on, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import switch
from saltworks.handover import Returned, Stranded
from saltworks.minions import MachineError
from saltworks.parts.model import Ask, Steps

MOVE = switch.Switch(
    part="database",
    front="proxy",
    target="synapse",
    synapse="synapse",
    service="synapse",
    ports=(8008,),
    url="http://198.18.0.12:8008",
    config="/etc/synapse/homeserver.yaml",
    steps=Steps(
        before=(Ask("old", "part.ready"),),
        act=(
            Ask("old", "part.fence", {"database": "synapse"}),
            Ask("new", "part.promote", given={"fenced": "part.fence"}),
        ),
        undo=(Ask("old", "part.unfence"),),
    ),
)
WAY_BACK = [
    "synapse synapse_move.stop", "old part.unfence", "synapse synapse_move.put_back",
    "synapse synapse_move.arrive", "proxy door.open", "returned",
]  # fmt: skip
THERE = [
    "proxy door.status", "old part.ready", "proxy door.announce", "moving", "proxy door.close",
    "synapse synapse_move.leave", "old part.fence", "new part.promote",
    "synapse synapse_move.take_up", "synapse synapse_move.arrive", "arrived", "proxy door.open",
]  # fmt: skip


class Machines:
    """Answers to every call, but for those that are broken."""

    def __init__(self, *broken: str, door: str = "open") -> None:
        self.calls: list[str] = []
        self.broken, self.door = broken, door
        self.given: dict[str, Any] = {}

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        name = f"{minion} {function}"
        self.calls.append(name)
        self.given[function] = kwargs
        if name in self.broken:
            raise MachineError(f"{name} failed")
        if function == "door.status":
            return {"state": self.door, "target": "synapse" if self.door == "open" else None}
        return {"seconds": 0.5, "by": name}


def conduct(machines: Machines, arrived: bool = False) -> dict[str, Any]:
    return switch.conduct(machines, MOVE, machines.calls.append, arrived, lambda: 0.0)


def test_what_a_step_answers_is_handed_on_and_not_told_twice() -> None:
    machines = Machines()
    done = conduct(machines)
    assert machines.calls == THERE
    assert machines.given["part.fence"] == {"database": "synapse", "timeout": 5}
    assert machines.given["part.promote"]["fenced"]["by"] == "old part.fence"
    assert set(done["steps"]) == {"part.promote"}


def test_what_is_not_ready_ends_it_before_anybody_waits() -> None:
    machines = Machines("old part.ready")
    with pytest.raises(MachineError, match=r"part\.ready failed"):
        conduct(machines)
    assert machines.calls == THERE[:2]


@pytest.mark.parametrize("step", [row for row in THERE[4:10] if not row.endswith("arrive")])
def test_a_step_that_fails_is_gone_back_from(step: str) -> None:
    machines = Machines(step)
    with pytest.raises(Returned, match=r"failed\. Nothing is lost"):
        conduct(machines)
    assert machines.calls[-len(WAY_BACK):] == WAY_BACK


def test_an_undo_that_fails_leaves_the_door_shut() -> None:
    machines = Machines("new part.promote", "old part.unfence")
    with pytest.raises(Stranded, match="stays shut"):
        conduct(machines)
    assert "proxy door.open" not in machines.calls


def test_a_run_that_died_behind_a_shut_door_goes_on() -> None:
    machines = Machines(door="closed")
    conduct(machines)
    assert "old part.ready" not in machines.calls
    assert machines.calls[-1] == "proxy door.open"


def test_what_has_moved_is_not_moved_again() -> None:
    machines = Machines()
    assert conduct(machines, arrived=True) == {"changed": False}
    assert machines.calls == ["proxy door.status", "arrived"]


def test_a_run_that_died_on_its_way_elsewhere_is_taken_back_behind_the_shut_door() -> None:
    machines = Machines(door="closed")
    conduct(machines, arrived=True)
    assert machines.calls == [
        "proxy door.status", "synapse synapse_move.stop", "old part.unfence",
        "synapse synapse_move.arrive", "arrived", "proxy door.open",
    ]  # fmt: skip
