"""Others are told of a member: who must answer, and what is done without those who do not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from saltworks import plan
from saltworks.minions import ROLE_SLS, MachineError

from tests import cluster
from tests.cluster import WORKER_MAP
from tests.unit.worker_house import URL, House, cut, joining

#: Of the project's modules, which a state run of the role does not bring.
KINDS = ("states", "modules")


def test_clients_are_held_while_others_are_told(tmp_path: Path) -> None:
    house = joining(tmp_path)
    answer = house.module.register("persister-2")
    assert answer["changes"] == {"persister-2": {"old": "joining", "new": "ready"}}
    stops = {f"persister-{n}": [f"synapse-worker@persister-{n}-1"] for n in (1, 2)}
    stops["synapse"] = ["synapse"]
    ports = {"persister-1": [8101], "persister-2": [8101], "synapse": [plan.PORT]}
    runs = [(name, "state.single") for name in ("proxy", *stops)]
    everybody = sorted(("proxy", "sync-1", *stops))
    assert house.calls[1:] == [
        *((name, f"saltutil.sync_{kind}") for kind in KINDS for name in everybody),
        ("proxy", "door.status"),
        ("proxy", "door.announce", plan.announce_seconds(WORKER_MAP)),
        *runs,
        ("proxy", "door.close"),
        *((name, "synapse_worker.emptied_here", ports) for name in stops),
        *((name, "synapse_worker.stop_here", stops) for name in stops),
        ("synapse", "state.sls", ROLE_SLS),
        ("persister-1", "state.sls", ROLE_SLS),
        ("persister-2", "state.sls", ROLE_SLS),
        ("sync-1", "state.sls", ROLE_SLS),
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
    assert house.asked("state.sls", ROLE_SLS) == ["synapse"]
    assert house.calls[-1] == ("proxy", "door.open", "synapse")
    late = house.store.rows["late"]
    assert {name: row["services"] for name, row in late.items()} == {
        "persister-2": ["synapse-worker@persister-2-1"], "sync-1": [],
    }  # fmt: skip
    # They are back.
    house.silent, house.calls[:] = set(), []
    house.module.tell("sync-1")
    assert house.calls == [
        *(("sync-1", f"saltutil.sync_{kind}") for kind in KINDS), ("sync-1", "state.sls", ROLE_SLS),
    ]  # fmt: skip
    house.calls.clear()
    house.module.tell("persister-2")
    synced = [f"saltutil.sync_{kind}" for kind in KINDS]
    assert [row[1] for row in house.calls] == [
        *synced,
        "state.single", "state.single", "door.close",
        "synapse_worker.emptied_here", "synapse_worker.stop_here",
        "state.sls", "state.sls", "door.open",
    ]  # fmt: skip
    assert house.store.rows["late"] == {}
    assert "need not be told" in house.module.tell("sync-1")["said"]


def test_one_that_cannot_be_told_later_is_asked_ever_less_often(tmp_path: Path) -> None:
    house = House(tmp_path, "ready").own()
    house.store.rows["late"] = {"sync-1": {"services": [], "failures": 0, "not_before": 0.0}}
    house.failing[("sync-1", "state.sls", ROLE_SLS)] = MachineError("disk full")
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


def test_a_machine_that_dies_during_its_own_telling_keeps_nobody_waiting(tmp_path: Path) -> None:
    house = cut(tmp_path)
    house.silent = {"persister-2"}
    said = house.module.tell("persister-2")["said"]
    assert said.startswith("persister-2 cannot be told yet; the door of proxy is open")
    assert house.asked("state.sls", ROLE_SLS) == ["synapse", "persister-1", "sync-1"]
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
    assert house.asked("state.sls", ROLE_SLS) == ["synapse", "persister-1", "sync-1"]
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
    assert house.asked("state.sls", ROLE_SLS) == house.asked("door.open") == []
    assert "persister-2" in house.store.rows["told"]
