"""A part's window: the order of its steps, what they hand on, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import moves, owners, parts, plan, switch
from saltworks.minions import MachineError
from saltworks.parts.model import Ask, Steps
from saltworks.switch import Returned, Stranded

from tests.render.stages import AFTER_M2, MAP
from tests.unit.house import House, held, living

HERE = moves.Place("synapse", "synapse", "http://198.18.0.12:8008")
MOVE = moves.Move(
    what="database",
    front="proxy",
    old=HERE,
    new=HERE,
    service="synapse",
    ports=(8008,),
    announce=31,
    mend="mend that machine",
    steps=Steps(
        before=(Ask("old", "part.ready"),),
        act=(
            Ask("old", "part.fence", {"database": "synapse"}),
            Ask("new", "part.promote", given={"fenced": "part.fence"}),
        ),
        undo=(Ask("old", "part.unfence"),),
        tried=(Ask("new", "part.stand_down", undone="It is done before anything else."),),
    ),
)
BACK = [
    "synapse synapse_move.stop", "new part.stand_down", "old part.unfence",
    "synapse synapse_move.arrive", "proxy door.open",
]  # fmt: skip
THERE = [
    "proxy door.status", "old part.ready", "proxy door.announce", "moving", "proxy door.close",
    "synapse synapse_move.leave", "old part.fence", "new part.promote",
    "synapse synapse_move.arrive", "arrived", "proxy door.open",
]  # fmt: skip


class Machines:
    """Answers to every call, but for those that are broken, each as often as it is named."""

    def __init__(self, *broken: str, door: str = "open") -> None:
        self.calls: list[str] = []
        self.broken, self.door = list(broken), door
        self.given: dict[str, Any] = {}
        #: A call that fails when it was made before.
        self.dies = ""
        self.stood_down = ""

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        name = f"{minion} {function}"
        if name == self.dies and name in self.calls:
            self.broken.append(name)
        self.calls.append(name)
        self.given[function] = kwargs
        if name in self.broken:
            self.broken.remove(name)
            raise MachineError(f"{name} failed")
        if function == "door.status":
            return {"state": self.door, "target": "synapse" if self.door == "open" else None}
        if function == "part.stand_down":
            return self.stood_down
        self.door = {"door.close": "closed", "door.open": "open"}.get(function, self.door)
        return {"seconds": 0.5, "by": name}


def conduct(machines: Machines, arrived: bool = False) -> dict[str, Any]:
    return switch.conduct(machines, MOVE, machines.calls.append, arrived, lambda: 0.0)


def test_what_a_step_answers_is_handed_on_and_not_told_twice() -> None:
    machines = Machines()
    done = conduct(machines)
    assert machines.calls == THERE
    assert machines.given["part.fence"] == {"database": "synapse", "timeout": 5}
    assert machines.given["part.promote"]["fenced"]["by"] == "old part.fence"
    assert machines.given["synapse_move.leave"] == {"service": "synapse", "ports": [8008]}
    # Synapse stays where it is, so it is for after a reboot too.
    assert machines.given["synapse_move.arrive"] == {
        "service": "synapse", "url": HERE.url, "pulls": [], "enable": True,
    }
    assert set(done["steps"]) == {"part.promote"}


def test_what_is_not_ready_ends_it_before_anybody_waits() -> None:
    machines = Machines("old part.ready")
    with pytest.raises(MachineError, match=r"part\.ready failed"):
        conduct(machines)
    assert machines.calls == [*THERE[:2], "returned"]


@pytest.mark.parametrize("step", THERE[5:9])
def test_a_step_that_fails_is_gone_back_from(step: str) -> None:
    machines = Machines(step)
    with pytest.raises(Returned, match=r"failed\. Nothing is lost, everything serves as before"):
        conduct(machines)
    there = THERE[: THERE.index(step) + 1]
    assert machines.calls == [*there, "proxy door.status", *BACK, "returned"]


def test_synapse_is_not_stopped_behind_a_door_that_did_not_close() -> None:
    machines = Machines("proxy door.close")
    with pytest.raises(Returned, match=r"failed\. Nothing is lost, everything serves as before"):
        conduct(machines)
    assert machines.calls == [*THERE[:5], "proxy door.status", "returned"]


def test_what_was_promoted_stands_down_before_the_other_one_takes_writes() -> None:
    machines = Machines("synapse synapse_move.arrive")
    machines.stood_down = "/data: is fenced again"
    with pytest.raises(Returned, match=r"run the same again\. new: /data: is fenced again$"):
        conduct(machines)
    assert machines.calls[-len(BACK) - 1 :] == [*BACK, "returned"]


def test_one_that_cannot_stand_down_keeps_nobody_waiting_and_is_named() -> None:
    machines = Machines("synapse synapse_move.arrive", "new part.stand_down")
    said = r"same again\. new was not reached .*stand_down failed\. It is done before anything else"
    with pytest.raises(Returned, match=said):
        conduct(machines)
    assert machines.calls[-len(BACK) - 1 :] == [*BACK, "returned"]


def test_what_a_dead_run_s_way_back_did_is_told() -> None:
    machines = Machines(door="closed")
    machines.stood_down = "/data: is fenced again"
    done = switch.back(machines, MOVE, clock=lambda: 0.0)
    assert done == {"changed": True, "window": 0.0, "tried": ["new: /data: is fenced again"]}


def test_an_undo_that_fails_leaves_the_door_shut() -> None:
    machines = Machines("new part.promote", "old part.unfence")
    with pytest.raises(Stranded, match=r"promote failed; and .*unfence failed.* stays shut.* mend"):
        conduct(machines)
    assert "proxy door.open" not in machines.calls


@pytest.mark.parametrize("step", ["synapse synapse_move.arrive", "proxy door.open"])
def test_a_way_back_that_leaves_people_waiting_says_so_and_why_it_was_taken(step: str) -> None:
    machines = Machines("new part.promote", step)
    with pytest.raises(MachineError, match=rf"promote failed; and {step} failed\. .*clients wait"):
        conduct(machines)
    assert "returned" not in machines.calls


def test_a_front_machine_that_dies_in_the_window_is_named_with_what_failed_before() -> None:
    machines = Machines("new part.promote")
    machines.dies = "proxy door.status"
    with pytest.raises(MachineError, match=r"promote failed; and .*status failed\. .*clients wait"):
        conduct(machines)


def test_what_arrived_and_does_not_start_says_that_people_wait() -> None:
    machines = Machines("synapse synapse_move.arrive", door="closed")
    with pytest.raises(MachineError, match="clients wait: mend this and run the same again"):
        conduct(machines, arrived=True)


def test_a_run_that_died_behind_a_shut_door_goes_on() -> None:
    machines = Machines(door="closed")
    conduct(machines)
    assert "old part.ready" not in machines.calls
    assert machines.calls[-1] == "proxy door.open"


def test_what_has_moved_is_not_moved_again() -> None:
    machines = Machines()
    assert conduct(machines, arrived=True) == {"changed": False}
    assert machines.calls == ["proxy door.status", "arrived"]


def test_what_arrived_behind_a_shut_door_needs_but_the_door() -> None:
    machines = Machines(door="closed")
    assert conduct(machines, arrived=True)["changed"]
    assert machines.calls == ["proxy door.status", *THERE[-3:]]


def test_a_door_that_does_not_open_leaves_both_ways() -> None:
    machines = Machines("proxy door.open")
    with pytest.raises(MachineError, match=r"door\.open failed\. The door of proxy") as failed:
        conduct(machines)
    assert not isinstance(failed.value, Returned | Stranded)
    assert machines.calls == [*THERE, "proxy door.status", "moving"]


def test_the_configuration_is_taken_up_at_the_start_and_put_back_last() -> None:
    placement = plan.Placement.recorded(MAP, {**AFTER_M2, "upcoming": {"auth": "directory"}})
    move = moves.of_part(MAP, placement, parts.PARTS["auth"])
    assert (move.front, move.old, move.new) == ("proxy", HERE, HERE)
    config = {"config": "/etc/synapse/homeserver.yaml"}
    assert move.arrive == config
    assert "run orch.m3.auth again, or orch.m3.auth.rollback" in move.mend
    back = plan.Placement.recorded(MAP, {**AFTER_M2, "auth": "directory", "upcoming": {"auth": ""}})
    # Once it was achieved, the milestone itself has nothing to do.
    assert move.mend != (mend := moves.of_part(MAP, back, parts.PARTS["auth"]).mend)
    assert mend.endswith("run orch.m3.auth.rollback again")
    assert move.steps.undo[-1] == Ask("synapse", "synapse_move.put_back", config)


class Runner(House):
    """The runner ``switch`` over machines and a placement record."""

    def __init__(self, machines: Machines, **placement: Any) -> None:
        super().__init__("switch", placement={**AFTER_M2, **placement})
        vars(self.module)["Machines"] = lambda opts: machines

    def map(self) -> Any:
        return MAP

    def placement(self, cmap: Any) -> plan.Placement:
        return plan.Placement.recorded(cmap, self.record)

    @property
    def record(self) -> dict[str, Any]:
        row = self.store.rows["placement"]
        assert isinstance(row, dict)
        return row


UPCOMING = {"auth": "directory"}


def test_the_record_says_where_the_part_is() -> None:
    runner = Runner(Machines(), upcoming=UPCOMING)
    assert runner.module.to("auth")["changed"]
    assert runner.record == {**AFTER_M2, "auth": "directory", "upcoming": {}, "moving": False}
    assert runner.module.to("auth") == {"changed": False}


def test_what_went_back_is_recorded_where_it_was_and_may_try_again() -> None:
    runner = Runner(Machines("directory slapd.take"), upcoming=UPCOMING)
    answer = runner.module.to("auth")
    assert answer["retcode"] == 1
    assert "auth did not move" in answer["data"]
    assert runner.record == {**AFTER_M2, "auth": "", "upcoming": UPCOMING, "moving": False}
    assert runner.module.to("auth")["changed"]


@pytest.mark.parametrize("way", ["to", "back"])
def test_a_door_that_did_not_open_is_opened_by_the_next_run_either_way(way: str) -> None:
    machines = Machines("proxy door.open")
    runner = Runner(machines, upcoming=UPCOMING)
    assert runner.module.to("auth")["retcode"] == 1
    assert runner.record == {**AFTER_M2, "auth": "", "upcoming": UPCOMING, "moving": True}
    assert getattr(runner.module, way)("auth")["changed"]
    where = "directory" if way == "to" else ""
    assert runner.record == {**AFTER_M2, "auth": where, "upcoming": {}, "moving": False}
    assert machines.door == "open"


def test_a_run_that_died_on_its_way_elsewhere_is_taken_back_behind_the_shut_door() -> None:
    machines = Machines(door="closed")
    runner = Runner(machines, auth="directory", upcoming={"auth": ""}, moving=True)
    done = runner.module.to("auth")
    assert machines.calls == [
        "proxy door.status", "synapse synapse_move.stop", "directory slapd.open",
        "synapse synapse_move.put_back", "synapse synapse_move.arrive", "proxy door.open",
    ]  # fmt: skip
    assert set(done) == {"changed", "window"}
    assert runner.record == {**AFTER_M2, "auth": "directory", "upcoming": {}, "moving": False}


def test_what_is_not_prepared_or_is_worked_on_is_refused() -> None:
    machines = Machines()
    runner = Runner(machines)
    said = runner.module.to("auth")["data"]
    assert "is not prepared -> run salt-run state.orchestrate orch.m3.auth" in said
    assert "is no part" in runner.module.to("cache")["data"]
    runner = Runner(machines, upcoming=UPCOMING)
    with living() as owner:
        runner.store.rows["lock"] = held(owner, "milestone m3.auth")
        for step in (runner.module.to, runner.module.back):
            assert "is running already" in step("auth")["data"]
        runner.store.rows["lock"] = held(owners.this_process(), "milestone m3.auth")
        assert runner.module.to("auth")["changed"]
    runner = Runner(machines, auth="directory", given_up=["auth"])
    assert "is retired for good" in runner.module.back("auth")["data"]
