"""A telling is conducted: what is done in which order, and what when something fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from saltworks import minions, telling_run
from saltworks.errors import Problem, Refused
from saltworks.minions import QUEUE, MachineError
from saltworks.telling import Telling
from saltworks.telling_run import Ledger, Untouched, Way, conduct, finish

TOLD = Telling(
    {"synapse": ("synapse",), "writer-1": ("w1",), "writer-2": ("w2",)},
    (("synapse",), ("writer-1", "writer-2"), ("sync-1", "sync-2")),
)
PORTS = {"synapse": [8008], "writer-1": [8101], "writer-2": [8101], "sync-2": [8101]}
WAY = Way("proxy", "synapse", "synapse", PORTS, announce=31)


class House:
    """Machines and records in one; ``log`` has both in their order."""

    def __init__(self, *failing: tuple[str, str]) -> None:
        self.failing = set(failing)
        self.rows: dict[str, dict[str, Any]] = {}
        self.door = "open"
        #: Requests that do not end in time, by machine.
        self.left: dict[str, int] = {}
        self.log: list[str] = []
        #: What, to whom, and after how much of the log.
        self.brought: list[tuple[str, list[str], int]] = []
        self.given: list[tuple[str, str, Any]] = []
        self.ledger = Ledger(self, "writer-2")

    def call(self, minion: str, function: str, *args: Any, **_: Any) -> Any:
        if function == "state.sls":
            function = f"{function} {args[0]}"
        self.log.append(f"{minion} {function}")
        if (minion, function) in self.failing:
            raise MachineError(f"{minion}: {function} failed")
        if function == "door.close":
            assert self.rows["told"], "written down before anybody waits"
            self.door = "closed"
        if function == "door.open":
            self.door = "open"
        return {"state": self.door, "seconds": 0.1, "left": self.left.get(minion, 0)}

    def calls(self, minions: Any, function: str, *args: Any, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if function.startswith("saltutil.sync_"):
            self.brought.append((function, [*minions], len(self.log)))
            failing = [name for name in minions if (name, function) in self.failing]
            return {name: MachineError("no disk") for name in failing}
        # An operator's state run there is waited for, not failed at (design, section 9).
        assert more.get("queue") == (QUEUE if function.startswith("state.") else None)
        assert more["timeout"] < 15, "one that dies is noticed while people wait"
        for minion in minions:
            if args and function.startswith("synapse_worker."):
                self.given.append((function, minion, args[0][minion]))
            try:
                found[minion] = self.call(minion, function, *args)
            except MachineError as error:
                found[minion] = error
        return found

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        row = dict(self.rows.get(key, {}))
        yield row
        self.rows[key] = row

    def change(self) -> None:
        assert self.rows["told"]["writer-2"] == TOLD.as_row(), "all are stopped, none started"
        self.log.append("changed")

    def conduct(self) -> str:
        return conduct(self, WAY, TOLD, self.ledger, self.change)

    @property
    def late(self) -> dict[str, Any]:
        return {name: row["services"] for name, row in self.rows.get("late", {}).items()}


STOPPED = ("synapse", "writer-1", "writer-2")
RUNS = [f"{name} state.single" for name in ("proxy", *STOPPED)]
STOPS = [
    *(f"{name} synapse_worker.emptied_here" for name in sorted(("sync-2", *STOPPED))),
    *(f"{name} synapse_worker.stop_here" for name in STOPPED),
]
STARTS = {name: f"{name} synapse_worker.start_here" for name in ("synapse", "writer-1", "writer-2")}
APPLIED = [
    f"{name} state.sls roles" for name in ("synapse", "writer-1", "writer-2", "sync-1", "sync-2")
]
OPENED = ["proxy state.sls nginx.loaded", "proxy door.open"]


def test_all_are_stopped_then_the_registry_changes_then_all_are_started_main_first() -> None:
    house = House()
    assert house.conduct() == "the door of proxy is open, after 0.1 s"
    assert house.log == [
        "proxy door.status", "proxy door.announce", *RUNS, "proxy door.close", *STOPS, "changed",
        *APPLIED, *OPENED,
    ]  # fmt: skip
    assert (house.rows["told"], house.late) == ({}, {})
    everybody = ["proxy", "synapse", "sync-1", "sync-2", "writer-1", "writer-2"]
    kinds = ("states", "modules")
    assert house.brought == [(f"saltutil.sync_{kind}", everybody, 0) for kind in kinds]
    assert [given for _, name, given in house.given if name == "writer-1"] == [[8101], ["w1"]]


def test_who_gets_no_modules_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def warning(words: str, *more: str) -> None:
        lines.append(words % more)

    monkeypatch.setattr(minions.log, "warning", warning)
    house = House(("sync-1", "saltutil.sync_states"))
    assert house.conduct() == "the door of proxy is open, after 0.1 s"
    assert lines == ["modules: no disk"]


def test_a_door_that_is_shut_is_not_announced_and_nor_is_what_has_no_time() -> None:
    house = House()
    house.door = "closed"
    house.conduct()
    assert "proxy door.announce" not in house.log
    house = House()
    conduct(house, Way("proxy", "synapse", "synapse", {}), TOLD, house.ledger, house.change)
    assert house.log[: len(RUNS) + 1] == [*RUNS, "proxy door.close"]


@pytest.mark.parametrize(
    ("machine", "function", "first", "last"),
    [
        ("proxy", "door.announce", (), ()),
        ("writer-1", "state.single", (), ()),
        ("proxy", "door.close", (), ()),
        ("synapse", "synapse_worker.stop_here", ("synapse", "writer-1", "writer-2"), ()),
        ("writer-1", "synapse_worker.emptied_here", ("synapse", "writer-2"), ("writer-1",)),
        ("writer-1", "synapse_worker.stop_here", ("synapse", "writer-2"), ("writer-1",)),
    ],
)
def test_what_fails_before_the_registry_changes_leaves_all_as_it_was(
    machine: str, function: str, first: tuple[str, ...], last: tuple[str, ...]
) -> None:
    """And nobody waits for the machine that it failed on, but for main's."""
    house = House((machine, function))
    with pytest.raises(Untouched, match=rf"{machine}: {function} failed\. Nothing is changed"):
        house.conduct()
    assert "changed" not in house.log
    after = [STARTS[name] for name in first], [STARTS[name] for name in last]
    undone = [*after[0], "proxy door.open", *after[1]]
    assert (house.log[-len(undone) :], house.door) == (undone, "open")
    assert (house.rows["told"], house.late) == ({}, {})


def test_a_registry_that_refuses_leaves_all_as_it_was() -> None:
    house = House()

    def refuses() -> None:
        raise Refused("registry", [Problem("writer-2", "is gone", "only joining does")])

    with pytest.raises(Untouched, match=r"writer-2: is gone -> only joining does. Nothing is"):
        conduct(house, WAY, TOLD, house.ledger, refuses)
    assert (house.door, house.rows["told"]) == ("open", {})


def test_on_the_way_back_one_that_does_not_start_keeps_nobody_waiting_but_main_does() -> None:
    silent = ("writer-1", "synapse_worker.stop_here"), ("writer-1", "synapse_worker.start_here")
    house = House(*silent)
    with pytest.raises(Untouched, match=r"But writer-1: synapse_worker.start_here failed"):
        house.conduct()
    assert (house.door, house.rows["told"], house.late) == ("open", {}, {"writer-1": ["w1"]})
    house = House(*silent, ("synapse", "synapse_worker.start_here"))
    with pytest.raises(MachineError, match=r"start_here failed\. The door of proxy may"):
        house.conduct()
    assert (house.door, list(house.rows["told"])) == ("closed", ["writer-2"])


def test_one_that_only_serves_and_fails_does_not_hold_the_door() -> None:
    house = House(("sync-1", "state.sls roles"))
    said = house.conduct()
    assert said == "later: sync-1: state.sls roles failed; the door of proxy is open, after 0.1 s"
    assert (house.door, house.rows["told"], house.late) == ("open", {}, {"sync-1": []})
    assert house.rows["late"]["sync-1"]["not_before"] > 0, "and not at once again"


def test_a_writer_that_fails_is_tried_again_once_and_then_keeps_nobody_waiting() -> None:
    house = House(("writer-1", "state.sls roles"))
    with pytest.raises(MachineError, match=r"writer-1: state.sls roles failed. The door of proxy"):
        house.conduct()
    assert house.door == "closed"
    assert house.rows["told"]["writer-2"]["changed"], "what is started from here on has the new"
    house.log.clear()
    finish(house, WAY, TOLD, house.ledger)
    assert house.log == [*RUNS, "proxy door.close", *STOPS, *APPLIED, *OPENED]
    assert (house.door, house.rows["told"], house.late) == ("open", {}, {"writer-1": ["w1"]})


def test_without_main_the_door_stays_shut_and_it_is_tried_again() -> None:
    house = House(("synapse", "state.sls roles"))
    for step in (house.conduct, lambda: finish(house, WAY, TOLD, house.ledger)):
        with pytest.raises(MachineError, match=r"synapse: state.sls roles failed"):
            step()
        assert (house.door, list(house.rows["told"])) == ("closed", ["writer-2"])
    house.failing.clear()
    finish(house, WAY, TOLD, house.ledger)
    assert (house.door, house.rows["told"]) == ("open", {})


def test_a_run_that_died_before_anything_was_stopped_stops_nothing() -> None:
    house = House()
    house.ledger.begun(Telling())
    house.door = "closed"
    finish(house, WAY, Telling(), house.ledger)
    assert house.log == OPENED
    assert (house.door, house.rows["told"]) == ("open", {})


def test_who_is_told_is_no_longer_to_be_told_later() -> None:
    house = House()
    house.ledger.late({"sync-1": [], "sync-9": []})
    house.ledger.late({"writer-1": ["w1"]}, failed=True)
    house.conduct()
    assert house.late == {"sync-9": []}


def test_nothing_is_applied_while_one_does_not_stop() -> None:
    """A machine was started anew meanwhile, with what it was told before."""
    house = House(("writer-1", "synapse_worker.stop_here"))
    house.ledger.begun(TOLD)
    with pytest.raises(MachineError, match=r"writer-1: synapse_worker.stop_here failed"):
        finish(house, WAY, TOLD, house.ledger)
    assert not [row for row in house.log if row.endswith("state.sls roles")]
    assert house.door == "closed"


def test_what_cannot_say_that_nothing_is_in_flight_is_stopped_all_the_same() -> None:
    house = House(("writer-1", "synapse_worker.emptied_here"))
    house.ledger.begun(TOLD)
    finish(house, WAY, TOLD, house.ledger)
    assert (house.door, house.rows["told"]) == ("open", {})


def test_what_had_not_ended_in_time_is_said_and_only_who_stops_must_be_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(telling_run.log, "warning", lambda text, line: logged.append(line))
    house = House(("sync-2", "synapse_worker.emptied_here"))
    house.left = {"writer-1": 2}
    said = house.conduct()
    assert said == "2 requests were cut on writer-1; the door of proxy is open, after 0.1 s"
    assert logged == ["2 requests were cut on writer-1"]
