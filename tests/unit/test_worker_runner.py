"""The runner ``worker``: the steps of coming and going, on machines that only answer."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from saltworks import joins, members, owners, plan, registry, telling
from saltworks.errors import Problem
from saltworks.minions import MachineError

from tests import cluster
from tests.cluster import WORKER_MAP
from tests.render.stages import AFTER_M3
from tests.unit.house import Records, held, living
from tests.unit.modules.minion_modules import load

URL = "http://198.19.0.1:8101"
MAIN_URL = "http://198.18.0.12:8008"


class House:
    """A tree after M4's beginning, with one member; ``calls`` says what machines were asked."""

    def __init__(self, tmp_path: Path, state: registry.State = "joining", kind: str = "sync"):
        self.store = Records(
            placement={**AFTER_M3, "redis": cluster.REDIS},
            registry={f"{kind}-1": asdict(cluster.member(f"{kind}-1", kind, 1, state))},
        )
        self.records = tmp_path
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {
            "network.ip_addrs": ["127.0.0.1", "198.19.0.1"],
            "network.ip_addrs6": [],
            "synapse_worker.healthy": 1.5,
            "synapse_worker.caught_up": {"streams": 20, "seconds": 0.5},
            "synapse_worker.served": {"sync-1-1": {"request": "GET /sync", "status": "401"}},
            "synapse_worker.emptied": {"seconds": 31.0, "left": 0},
            "synapse_worker.answering": self.health,
            "door.status": {"state": "open"},
            "door.close": {"seconds": 0.2},
            "door.open": {"seconds": 0.1},
        }
        #: Who does not answer Salt, which processes not the front, and what fails where.
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.failing: dict[tuple[str, str], MachineError] = {}
        self.removed: list[str] = []
        self.module: Any = load("_runners", "worker")
        vars(self.module).update(
            Tree=self, Machines=lambda opts: Asked(self), Keys=lambda opts: self, __opts__={}
        )
        vars(self.module)["passes"] = self

    # The tree's part.
    def of(self, opts: Any) -> House:
        return self

    def map(self) -> Any:
        return WORKER_MAP

    def placement(self, cmap: Any) -> plan.Placement:
        rows = registry.of(self.store.rows["registry"]).values()
        recorded = plan.Placement.recorded(cmap, self.store.rows["placement"])
        told = self.store.rows.get(telling.TOLD, {})
        stopped = telling.stopped(told)
        return replace(recorded, members=tuple(rows), telling=tuple(told), stopped=stopped)

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        row = dict(self.store.rows.get(key, {}))
        yield row
        self.store.rows[key] = row

    # The machines', the key store's and the passes' part.
    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((minion, function, *args))
        if minion in self.silent:
            raise MachineError(f"{minion} did not answer {function}")
        if (minion, function) in self.failing:
            raise self.failing[minion, function]
        answer = self.answers.get(function)
        return answer(*args) if callable(answer) else answer

    def many(self, minions: Any, function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for minion in minions:
            try:
                found[minion] = self.call(minion, function, *args)
            except MachineError as error:
                found[minion] = error
        return found

    def attempt(self, minion: str, function: str, *args: Any) -> tuple[Any, list[Problem]]:
        try:
            return self.call(minion, function, *args), []
        except MachineError as error:
            return None, [Problem(minion, str(error), "")]

    def answering(self, minions: list[str], *_: Any) -> set[str]:
        return set(minions) - self.silent

    def health(self, urls: list[str]) -> dict[str, bool]:
        return {url: url not in self.dead for url in urls}

    def own(self) -> House:
        """The lock is this process's."""
        self.store.rows["lock"] = held(owners.this_process(), "reconcile")
        return self

    def add(self, *rows: registry.Member) -> House:
        for row in rows:
            self.store.rows["registry"][row.minion] = asdict(row)
        return self

    def asked(self, function: str) -> list[str]:
        return [row[0] for row in self.calls if row[1:2] == (function,)]

    def remove(self, minion: str) -> None:
        self.removed.append(minion)

    def starter(self, opts: Any) -> None:
        return None

    def poke(self, records: Any, start: Any) -> None:
        self.calls.append(("poked",))

    def state(self, minion: str = "sync-1") -> str:
        return str(self.store.rows["registry"][minion]["state"])


class Asked:
    """The machines of a house, whose ``calls`` is the list of what was asked."""

    def __init__(self, house: House) -> None:
        self.call, self.calls = house.call, house.many
        self.attempt, self.answering = house.attempt, house.answering


def test_a_join_is_stamped_step_by_step_and_ends_ready(tmp_path: Path) -> None:
    house = House(tmp_path)
    for step in (
        "begin", "sync", "healthy", "caught_up", "register", "routed", "served", "finish",
    ):  # fmt: skip
        answer = getattr(house.module, step)("sync-1")
        assert "retcode" not in answer, answer
    assert house.state() == "ready"
    row = house.store.rows["joins"]["sync-1"]
    member = registry.of(house.store.rows["registry"])["sync-1"]
    assert list(joins.report(row)["phases"]) == list(joins.PHASES[1:])
    assert joins.finished(row, member)
    assert house.calls == [
        ("sync-1", "saltutil.sync_all"),
        ("sync-1", "network.ip_addrs"),
        ("sync-1", "network.ip_addrs6"),
        ("sync-1", "synapse_worker.healthy", [URL]),
        ("sync-1", "synapse_worker.caught_up", [URL], "http://198.18.0.12:9093", 60),
        ("proxy", "synapse_worker.answering", [URL]),
        house.calls[6],
    ]
    front, function, requests, names, log, address, port, name = house.calls[6]
    assert (front, function, names) == ("proxy", "synapse_worker.served", ["sync-1-1"])
    assert (log, address, port, name) == (
        "/var/log/nginx/saltworks-chat.access.log", "198.18.0.11", 443, "chat.lale.test",
    )  # fmt: skip
    assert requests[0]["path"].startswith("/_matrix/client/v3/sync")


def test_a_machine_that_the_front_does_not_reach_is_given_no_requests(tmp_path: Path) -> None:
    house = House(tmp_path).own()
    house.dead = {URL}
    answer = house.module.register("sync-1")["data"]
    assert f"does not answer proxy at {URL}" in answer
    assert house.state() == "joining"


def test_a_leave_and_a_loss_end_gone_and_the_key_goes_only_if_asked(tmp_path: Path) -> None:
    house = House(tmp_path, "ready")
    assert "leave" in house.module.drain("sync-1")
    assert house.calls.pop() == ("poked",)
    assert house.module.begin_drain("sync-1")["changes"] == {
        "sync-1": {"old": "ready", "new": "draining"}
    }
    house.module.emptied("sync-1")
    assert house.calls == [("sync-1", "synapse_worker.emptied", [8101], 90)]
    house.module.gone("sync-1")
    assert (house.state(), house.removed) == ("gone", [])
    house = House(tmp_path, "ready")
    house.module.drain("sync-1", remove_key=True)
    for step in (house.module.begin_drain, house.module.emptied, house.module.gone):
        step("sync-1")
    assert (house.state(), house.removed) == ("gone", ["sync-1"])
    house = House(tmp_path, "ready")
    house.dead = {URL}
    assert house.module.lose("sync-1")["changes"] == {"sync-1": {"old": "ready", "new": "gone"}}
    assert house.module.lose("sync-1")["changes"] == {}, "done again it changes nothing"


def test_the_key_of_who_is_dead_goes_as_well_and_first(tmp_path: Path) -> None:
    house = House(tmp_path, "ready")
    house.dead, house.silent = {URL}, {"sync-1"}
    house.module.drain("sync-1", remove_key=True)
    states: list[str] = []
    vars(house)["remove"] = lambda minion: states.append(house.state())
    house.module.lose("sync-1")
    assert (states, house.state()) == (["ready"], "gone")
    house = House(tmp_path, "draining").own()
    house.module.drain("sync-1", remove_key=True)
    vars(house)["remove"] = lambda minion: states.append(house.state())
    house.module.gone("sync-1")
    assert (states[1:], house.state()) == (["draining"], "gone")


def test_who_answers_after_all_is_not_lost_and_who_answers_salt_alone_is_stopped_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members.log, "warning", lambda *_: None)
    house = House(tmp_path, "ready")
    assert "answers at the front after all" in house.module.lose("sync-1")["data"]
    house.failing[("proxy", "synapse_worker.answering")] = MachineError("proxy is away")
    assert "nobody can say" in house.module.lose("sync-1")["data"]
    del house.failing[("proxy", "synapse_worker.answering")]
    house.dead = {URL}
    said = house.module.lose("sync-1")["said"]
    assert ("sync-1", "synapse_worker.stop", ["synapse-worker@sync-1-1"]) in house.calls
    assert said == "sync-1 is gone; synapse-worker@sync-1-1 stopped there"
    # Else two would do the same.
    house = House(tmp_path, "ready")
    house.dead = {URL}
    house.failing[("sync-1", "synapse_worker.stop")] = MachineError("it hangs")
    assert "it hangs" in house.module.lose("sync-1")["data"]
    assert house.state() == "ready"
    states: list[registry.State] = ["joining", "draining"]
    for state in states:
        house = House(tmp_path, state)
        assert "answers after all" in house.module.lose("sync-1")["data"]
        house.silent = {"sync-1"}
        house.module.lose("sync-1")
        assert (house.state(), house.calls) == ("gone", [])


def test_a_drain_that_does_not_empty_is_cut_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, "draining").own()
    monkeypatch.setattr(house.module.log, "propagate", False)
    monkeypatch.setattr(house.module.log, "handlers", [logging.NullHandler()])
    house.answers["synapse_worker.emptied"] = {"seconds": 90.0, "left": 2}
    answer = house.module.emptied("sync-1")
    assert answer["said"] == "2 connections are left after 90.0 s and are cut"


def joining(tmp_path: Path) -> House:
    """A second persister is about to be ready, a worker that only serves is there."""
    house = House(tmp_path, "ready", "persister").own()
    return house.add(
        cluster.member("persister-2", "persister", 2, "joining"),
        cluster.member("sync-1", "sync", 3),
    )


def test_clients_are_held_while_others_are_told(tmp_path: Path) -> None:
    house = joining(tmp_path)
    answer = house.module.register("persister-2")
    assert answer["changes"] == {"persister-2": {"old": "joining", "new": "ready"}}
    stops = {f"persister-{n}": [f"synapse-worker@persister-{n}-1"] for n in (1, 2)}
    stops["synapse"] = ["synapse"]
    ports = {"persister-1": [8101], "persister-2": [8101], "synapse": [plan.PORT]}
    assert house.calls[1:] == [
        ("proxy", "door.status"),
        ("proxy", "door.announce", plan.announce_seconds(WORKER_MAP)),
        ("proxy", "door.close"),
        *((name, "synapse_worker.emptied_here", ports) for name in stops),
        *((name, "synapse_worker.stop_here", stops) for name in stops),
        ("synapse", "state.highstate"),
        ("persister-1", "state.highstate"),
        ("persister-2", "state.highstate"),
        ("sync-1", "state.highstate"),
        ("proxy", "state.sls", "nginx.loaded"),
        ("proxy", "door.open", "synapse"),
    ]
    assert (house.store.rows["told"], house.store.rows["late"]) == ({}, {})


@pytest.mark.parametrize("away", ["sync-1", "persister-1", "persister-2", "synapse", "proxy"])
def test_one_that_must_be_told_and_is_silent_shuts_no_door(tmp_path: Path, away: str) -> None:
    house = joining(tmp_path)
    house.silent = {away}
    coming = house.module.register("persister-2")["data"]
    if away != "proxy":
        assert f"{away}: must be told that persister-2 is ready, and does not answer" in coming
    leaving = house.module.begin_drain("persister-1")["data"]
    assert f"{away}: must be told that persister-1 is draining" in leaving or (
        away == "persister-2"
    )
    assert "door.close" not in {row[1] for row in house.calls}
    assert house.state("persister-2") == "joining"
    assert "told" not in house.store.rows


def test_of_a_loss_those_who_are_silent_are_told_later(tmp_path: Path) -> None:
    house = joining(tmp_path).add(cluster.member("persister-2", "persister", 2))
    house.dead, house.silent = {URL}, {"persister-1", "persister-2", "sync-1"}
    said = house.module.lose("persister-1")["said"]
    assert said.startswith("persister-2, sync-1 cannot be told yet; persister-1 is gone; ")
    assert "door.announce" not in {row[1] for row in house.calls}, "there is no time for that"
    assert house.asked("state.highstate") == ["synapse"]
    assert house.calls[-1] == ("proxy", "door.open", "synapse")
    late = house.store.rows["late"]
    assert {name: row["services"] for name, row in late.items()} == {
        "persister-2": ["synapse-worker@persister-2-1"], "sync-1": [],
    }  # fmt: skip
    # They are back.
    house.silent, house.calls[:] = set(), []
    house.module.tell("sync-1")
    assert house.calls == [("sync-1", "state.highstate")]
    house.module.tell("persister-2")
    assert [row[1] for row in house.calls[1:]] == [
        "door.close", "synapse_worker.emptied_here", "synapse_worker.stop_here",
        "state.highstate", "state.sls", "door.open",
    ]  # fmt: skip
    assert house.store.rows["late"] == {}
    assert "need not be told" in house.module.tell("sync-1")["said"]


def test_one_that_cannot_be_told_later_is_asked_ever_less_often(tmp_path: Path) -> None:
    house = House(tmp_path, "ready").own()
    house.store.rows["late"] = {"sync-1": {"services": [], "failures": 0, "not_before": 0.0}}
    house.failing[("sync-1", "state.highstate")] = MachineError("disk full")
    for wait in (60, 120):
        assert house.module.tell("sync-1")["data"] == "disk full"
        row = house.store.rows["late"]["sync-1"]
        assert row["not_before"] - time.time() == pytest.approx(wait, abs=5)


def test_one_that_does_not_stop_to_be_told_later_shuts_the_door_ever_less_often(
    tmp_path: Path,
) -> None:
    house = joining(tmp_path)
    services = ["synapse-worker@persister-1-1"]
    house.store.rows["late"] = {"persister-1": {"services": services, "failures": 0}}
    house.failing[("persister-1", "synapse_worker.stop_here")] = MachineError("hangs")
    for wait in (60, 120):
        assert "hangs" in house.module.tell("persister-1")["data"]
        assert house.calls[-2:] == [
            ("proxy", "door.open", "synapse"),
            ("persister-1", "synapse_worker.start_here", {"persister-1": services}),
        ]
        row = house.store.rows["late"]["persister-1"]
        assert row["services"] == services
        assert row["not_before"] - time.time() == pytest.approx(wait, abs=5)


def cut(tmp_path: Path) -> House:
    """The run died right after the registry changed: nobody runs, the door is shut."""
    house = joining(tmp_path)
    house.failing[("synapse", "state.highstate")] = MachineError("it was killed here")
    assert "stays shut" in house.module.register("persister-2")["data"]
    assert house.placement(WORKER_MAP).telling == ("persister-2",)
    assert house.placement(WORKER_MAP).stopped == (), "what is started now has the new"
    house.failing.clear()
    house.calls.clear()
    return house


def test_a_machine_that_dies_during_its_own_telling_keeps_nobody_waiting(tmp_path: Path) -> None:
    house = cut(tmp_path)
    house.silent = {"persister-2"}
    said = house.module.tell("persister-2")["said"]
    assert said.startswith("persister-2 cannot be told yet; the door of proxy is open")
    assert house.asked("state.highstate") == ["synapse", "persister-1", "sync-1"]
    assert house.store.rows["told"] == {}
    assert list(house.store.rows["late"]) == ["persister-2"]
    # It is found dead afterwards, and nobody has to hear of it twice.
    house.dead = {"http://198.19.0.2:8101"}
    house.module.lose("persister-2")
    assert (house.state("persister-2"), house.store.rows["late"]) == ("gone", {})


def test_while_others_are_told_nobody_else_comes_or_goes_or_is_forgotten(tmp_path: Path) -> None:
    house = cut(tmp_path)
    house.add(cluster.member("persister-2", "persister", 2, "gone"))
    house.dead = {URL}
    for answer in (
        house.module.forget("persister-2"),
        house.module.register("sync-1"),
        house.module.begin_drain("sync-1"),
        house.module.lose("persister-1"),
    ):
        assert "persister-2: others are being told of it" in answer["data"]
    assert house.asked("synapse_worker.stop_here") == []
    # Of one that is gone by now nothing is left to ask.
    house.module.tell("persister-2")
    assert house.asked("state.highstate") == ["synapse", "persister-1", "sync-1"]
    assert house.module.forget("persister-2") == "persister-2 is forgotten"


def test_who_was_coming_and_dies_while_others_are_told_comes_anew(tmp_path: Path) -> None:
    house = cut(tmp_path).add(cluster.member("persister-2", "persister", 2, "joining"))
    house.store.rows["told"]["persister-2"]["changed"] = False
    house.silent = {"persister-2"}
    answer = house.module.tell("persister-2")
    assert answer["changes"] == {"persister-2": {"old": "joining", "new": "gone"}}
    assert house.store.rows["late"] == {}
    assert house.calls[-1] == ("proxy", "door.open", "synapse")


def test_without_main_s_machine_the_door_stays_shut(tmp_path: Path) -> None:
    """It may run with what it was told before: two processes would write the same stream."""
    house = cut(tmp_path)
    house.silent = {"synapse"}
    said = house.module.tell("persister-2")["data"]
    assert "synapse: the main process must be told, and its machine does not answer" in said
    assert "the door of proxy stays shut until then" in said
    assert house.asked("state.highstate") == house.asked("door.open") == []
    assert "persister-2" in house.store.rows["told"]


@pytest.mark.parametrize(
    "step", ["sync", "healthy", "caught_up", "register", "served", "finish", "emptied", "gone"]
)
def test_who_lost_the_lock_goes_no_further(tmp_path: Path, step: str) -> None:
    house = House(tmp_path)
    with living() as owner:
        house.store.rows["lock"] = held(owner, "milestone m3")
        answer = getattr(house.module, step)("sync-1")
        assert "milestone m3: is running already" in answer["data"]
        assert (house.calls, house.state()) == ([], "joining")
        assert "is running already" in house.module.begin("sync-1")["data"]
    # It expired, or was broken, and nobody has it.
    house.store.rows["lock"] = held(owners.this_process(), "reconcile", -1)
    assert "is not held any more" in getattr(house.module, step)("sync-1")["data"]
    assert house.calls == []


def test_a_machine_with_an_address_that_is_not_its_own_does_not_join(tmp_path: Path) -> None:
    house = House(tmp_path).own()
    house.answers["network.ip_addrs"] = ["198.18.0.11"]
    assert "addresses of its own" in house.module.sync("sync-1")["data"]


def test_operators_words_that_are_wrong_are_answered(tmp_path: Path) -> None:
    house = House(tmp_path, "ready")
    assert "is no member -> members: sync-1" in house.module.drain("sync-9")["data"]
    assert "was not drained" in house.module.undrain("sync-1")["data"]
    assert "has not joined" in house.module.report("sync-1")["data"]
    assert "is ready -> salt-run worker.drain sync-1" in house.module.forget("sync-1")["data"]
    assert house.module.list_()[0]["wanted"] == "in"
    house.module.drain("sync-1")
    assert house.module.list_()[0]["wanted"] == "out"
    house.store.rows["joins"] = {"sync-1": {"failures": 5, "error": "no", "not_before": 9e9}}
    assert "no; tried again after" in house.module.list_()[0]["error"]
    assert house.module.undrain("sync-1") == "sync-1 may come again"
    assert house.store.rows["joins"]["sync-1"]["failures"] == 0


def test_the_list_shows_what_a_machine_waits_for_and_why_it_cannot_leave(tmp_path: Path) -> None:
    house = House(tmp_path, "ready")
    house.store.rows["passes"] = {"waits": {"sync-1": "its salt-minion does not answer"}}
    house.store.rows["joins"] = {
        "sync-1": joins.left({"error": "join: no", "not_before": 9.0}, "leave", ["no"], 0.0)
    }
    (row,) = house.module.list_()
    assert row["waits_for"] == "its salt-minion does not answer"
    assert row["error"] == (
        "join: no; tried again after 1970-01-01 00:00:09 UTC; "
        "leave: no; tried again after 1970-01-01 00:01:00 UTC"
    )
    house.store.rows["told"] = {"sync-1": {}}
    assert "others are being told of it" in house.module.list_()[0]["waits_for"]


@pytest.mark.parametrize(
    ("dead", "well"),
    [
        (set(), {"sync-1": True, "persister-1": True}),
        ({URL}, {"sync-1": True, "persister-1": False}),
        ({URL, "http://198.19.0.3:8101"}, {"sync-1": False, "persister-1": False}),
        ({URL, "http://198.19.0.3:8101", MAIN_URL}, {}),
    ],
)
def test_the_front_says_of_all_and_of_main_whether_they_answer(
    tmp_path: Path, dead: set[str], well: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = joining(tmp_path)
    house.dead = dead
    said: list[str] = []
    monkeypatch.setattr(members.log, "warning", lambda text, *_: said.append(text))
    tree: Any = house
    assert members.healthy(tree, Asked(house)) == well  # type: ignore[arg-type]
    assert house.calls[0][2] == [URL, "http://198.19.0.3:8101", MAIN_URL]
    assert bool(said) is not bool(well)
    house.silent = {"proxy"}
    assert members.healthy(tree, Asked(house)) == {}  # type: ignore[arg-type]
    assert "nobody's health is known" in said[-1]


def test_while_others_are_told_nobody_is_asked_or_judged(tmp_path: Path) -> None:
    house = cut(tmp_path)
    tree: Any = house
    found = members.gathered(tree, house, lambda: pytest.fail("asked"), 0.0)  # type: ignore[arg-type]
    assert (found.untold, found.healthy) == ({"persister-2"}, {})


def test_those_are_asked_whether_they_answer_of_whom_it_matters(tmp_path: Path) -> None:
    house = joining(tmp_path).add(
        cluster.member("sync-2", "sync", 4, "draining"), cluster.member("sync-3", "sync", 5)
    )
    failed = {"failures": 1, "error": "x", "not_before": 7.0}
    house.store.rows.update(
        late={"sync-1": {"services": [], "not_before": 5.0}, "sync-9": {"services": []}},
        joins={
            "sync-1": {"generation": 1, "finished": 1.0, "leaving": {**failed, "what": "lose"}},
            "sync-2": {"leaving": {**failed, "what": "leave"}},
            "sync-3": {"generation": 1, "finished": 1.0},
            "persister-1": {"generation": 1, "finished": 1.0},
        },
    )
    asked: list[str] = []

    def answering(minions: list[str], *_: Any) -> set[str]:
        asked.extend(minions)
        return set(minions)

    vars(house)["answering"] = answering
    vars(house)["fingerprints"] = lambda names: {}
    tree: Any = house
    found = members.gathered(tree, tree, lambda: tree, 0.0)
    assert asked == ["persister-2", "sync-1", "sync-2"]
    assert (found.late, found.not_left_before) == ({"sync-1": 5.0}, {"sync-2": 7.0})
    assert found.bus
    assert not found.untold
    house.store.rows["placement"] = {**AFTER_M3}
    asked.clear()
    found = members.gathered(tree, tree, lambda: tree, 0.0)
    assert (found.bus, asked) == (False, ["persister-2", "sync-2"])
