"""The runner ``database``: a cluster's making, its machines' coming and going, and its primary."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from saltworks import joins, owners, plan, registry, telling
from saltworks.minions import MachineError

from tests import cluster
from tests.cluster import DATABASE_MAP, DATABASE_WAYS, databases
from tests.unit import worker_house
from tests.unit.house import held
from tests.unit.modules.minion_modules import load

TWO: tuple[registry.State, ...] = ("ready", "ready")
FINDS = "base,synapse.databases"
GATES = ("dcs-1", "dcs-2", "dcs-3", "storage")


class House(worker_house.House):
    """A master with a cluster of databases, whose machines only answer."""

    def __init__(
        self, tmp_path: Path, *states: registry.State, way: str = "cluster there"
    ) -> None:
        super().__init__(tmp_path)
        rows = (*databases(*states), *cluster.members({"sync": 1}))
        self.store.rows["registry"] = {row.minion: asdict(row) for row in rows}
        self.store.rows["placement"] = dict(DATABASE_WAYS[way])
        self.leader = "database"
        self.answers |= {
            "patroni.status": lambda: {"leader": self.leader, "members": {}},
            "patroni.switchover": self.switch,
            "patroni.streaming": {"seconds": 3.5},
            "etcd_member.status": {"healthy": True, "leader": "dcs-1"},
            "state.sls": lambda sls: {"a": {"changes": {}}, "b": {"changes": {"new": 1}}},
        }
        self.module = load("_runners", "database")
        vars(self.module).update(
            Tree=self, Machines=lambda opts: worker_house.Asked(self),
            Keys=lambda opts: self, __opts__={},
        )  # fmt: skip
        self.module.time = self

    def map(self) -> Any:
        return DATABASE_MAP

    def placement(self, cmap: Any) -> plan.Placement:
        rows = registry.of(self.store.rows["registry"]).values()
        recorded = plan.Placement.recorded(cmap, self.store.rows["placement"])
        return replace(recorded, members=tuple(rows))

    def switch(self, to: str, seconds: int) -> dict[str, Any]:
        self.leader = to or "database-2"
        return {"leader": self.leader, "seconds": 1.5}

    def fingerprints(self, names: list[str]) -> dict[str, str]:
        return dict.fromkeys(names, "0" * 64)

    def own(self) -> House:
        self.store.rows["lock"] = held(owners.this_process(), "reconcile")
        return self

    # The clock: a wait ends at its second look.
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += 100.0


def test_the_first_machine_becomes_a_member_once(tmp_path: Path) -> None:
    house = House(tmp_path, way="cluster watched").own()
    assert house.module.found("database")["changes"] == {"clustered": True}
    member = registry.of(house.store.rows["registry"])["database"]
    assert (member.kind, member.state, member.address) == ("database", "ready", "198.18.0.13")
    assert joins.finished(house.store.rows["joins"]["database"], member)
    assert house.placement(DATABASE_MAP).clustered
    assert house.module.found("database")["changes"] == {}


def test_a_machine_that_is_no_database_is_not_the_first(tmp_path: Path) -> None:
    house = House(tmp_path, way="cluster watched").own()
    assert "is no database of the map" in house.module.found("proxy")["data"]
    assert not house.placement(DATABASE_MAP).clustered


def test_a_standby_is_admitted_streams_and_is_then_known(tmp_path: Path) -> None:
    house = House(tmp_path, "ready", "joining").own()
    assert house.module.admit("database-2")["said"] == f"{', '.join(GATES)}, database admit it"
    assert "streams, after 3.5 s" in house.module.stream("database-2")["said"]
    assert house.state("database-2") == "joining"
    done = house.module.register("database-2")
    assert house.calls[-1] == ("database-2", "state.sls", "roles"), "now it may lead"
    assert done["changes"] == {"database-2": {"old": "joining", "new": "ready"}}
    assert "synapse, sync-1 know it" in done["said"]
    told = [row for row in house.calls if row[1] == "state.sls"]
    assert told == [
        *((name, "state.sls", "roles") for name in (*GATES, "database")),
        ("synapse", "state.sls", FINDS), ("sync-1", "state.sls", FINDS),
        ("database-2", "state.sls", "roles"),
    ]  # fmt: skip


def test_who_cannot_hear_of_it_hears_it_later_and_it_serves_all_the_same(tmp_path: Path) -> None:
    house = House(tmp_path, "ready", "joining").own()
    house.silent = {"sync-1"}
    said = house.module.register("database-2")["said"]
    assert "synapse know it; later: sync-1 did not answer" in said
    assert house.state("database-2") == "ready"
    assert list(house.store.rows[telling.LATE]) == ["sync-1"]


def test_a_dead_standby_is_in_nobody_s_way_and_a_dead_primary_is(tmp_path: Path) -> None:
    house = House(tmp_path, *TWO).own()
    third = replace(databases("ready")[0], minion="database-3", state="joining")
    house.add(third)
    house.silent = {"database-2"}
    said = house.module.admit("database-3")["said"]
    assert f"{', '.join(GATES)}, database admit it; later: database-2 did not answer" in said
    assert list(house.store.rows[telling.LATE]) == ["database-2"], "reconcile does it"
    house.silent, house.leader = {"database"}, "database"
    assert "database did not answer" in house.module.admit("database-3")["data"]
    house.silent, house.leader = set(), ""
    assert "there is no primary" in house.module.admit("database-3")["data"]


def test_a_copy_that_is_not_whole_is_not_registered(tmp_path: Path) -> None:
    house = House(tmp_path, "ready", "joining").own()
    house.failing[("database-2", "patroni.streaming")] = MachineError("creating replica")
    assert "creating replica" in house.module.stream("database-2")["data"]
    assert house.state("database-2") == "joining"


def test_the_primary_hands_over_before_it_leaves(tmp_path: Path) -> None:
    house = House(tmp_path, *TWO)
    done = house.module.hand_over("database")
    assert done["changes"] == {"leader": {"old": "database", "new": "database-2"}}
    assert house.module.begin_drain("database")["changes"] == {
        "database": {"old": "ready", "new": "draining"}
    }
    assert house.module.retire("database")["changes"]
    assert ("database", "state.sls", "roles.database.absent") in house.calls
    last = House(tmp_path, "ready", "joining")
    assert "is the last database" in last.module.hand_over("database")["data"]
    # A standby is in nobody's way.
    again = House(tmp_path, *TWO)
    assert again.module.hand_over("database-2")["changes"] == {}


def test_a_machine_that_was_coming_and_is_away_is_gone(tmp_path: Path) -> None:
    house = House(tmp_path, "ready", "joining")
    assert "answers after all" in house.module.lose("database-2")["data"]
    house.silent = {"database-2"}
    assert house.module.lose("database-2")["changes"] == {
        "database-2": {"old": "joining", "new": "gone"}
    }
    house.own().calls.clear()
    house.silent = {"storage"}
    done = house.module.shut_out("database-2")
    assert done["changes"]
    assert house.asked("state.sls", "roles") == [*GATES, "database"]
    assert "later: storage did not answer" in done["said"]
    assert list(house.store.rows[telling.LATE]) == ["storage"], "it hears it once it is back"


def test_switchover_and_reinit_refuse_what_cannot_be(tmp_path: Path) -> None:
    house = House(tmp_path, "ready", "joining")
    assert "is no database in service" in house.module.switchover("database-2")["data"]
    house = House(tmp_path, *TWO)
    assert house.module.switchover("database-2") == "database-2 is the primary, after 1.5 s"
    assert house.module.switchover("database-2") == "database-2 is the primary, after 0.0 s"
    assert "is the primary" in house.module.reinit("database-2")["data"]
    assert "is no database" in house.module.reinit("proxy")["data"]
    assert "makes a new copy" in house.module.reinit("database")
    house.leader = ""
    assert "has no primary" in house.module.switchover()["data"]


def test_status_asks_the_next_when_one_is_away(tmp_path: Path) -> None:
    house = House(tmp_path, *TWO)
    house.silent = {"database", "dcs-2"}
    found = house.module.status()
    assert (found["asked"], found["leader"]) == ("database-2", "database")
    house.silent, house.leader = {"dcs-2"}, "database-2"
    assert house.module.status()["asked"] == "database-2", "the primary knows more"
    assert "did not answer" in found["etcd"]["dcs-2"]
    assert (found["etcd"]["dcs-1"], found["etcd"]["dcs-3"]) == ("leads", "follows")
    assert [line for line in found["problems"] if line.startswith("dcs-2: etcd: ")]
    assert [line for line in found["problems"] if line.startswith("database: ")]
    house.silent = {"database", "database-2"}
    assert "can say how it is" in house.module.status()["data"]


def test_status_believes_whoever_sees_etcd(tmp_path: Path) -> None:
    house = House(tmp_path, *TWO)
    rows = {
        # An old primary that is cut off does not know yet that it is none.
        "database": {"leader": "database", "members": {}, "dcs": "no answer"},
        "database-2": {"leader": "database-2", "members": {}, "dcs": ""},
    }
    asked = house.call

    def call(minion: str, function: str, *args: Any) -> Any:
        return rows[minion] if function == "patroni.status" else asked(minion, function, *args)

    house.call = call  # type: ignore[method-assign]
    assert house.module.status()["asked"] == "database-2"
    rows["database-2"]["leader"] = ""
    assert house.module.status()["leader"] == ""
    rows["database-2"]["dcs"] = "no answer"
    assert house.module.status()["asked"] == "database"


def test_without_a_cluster_there_is_nothing_to_ask(tmp_path: Path) -> None:
    house = House(tmp_path, way="cluster watched")
    for function in ("status", "switchover"):
        assert "orch.m4.database first" in getattr(house.module, function)()["data"]


def test_waits_are_bounded_and_say_what_they_saw(tmp_path: Path) -> None:
    house = House(tmp_path, *TWO).own()
    assert house.module.watched()["said"] == "dcs-1, dcs-2, dcs-3: dcs-1 leads"
    house.answers["etcd_member.status"] = {"healthy": False, "leader": ""}
    assert "waited 60 s for etcd to agree" in house.module.watched()["data"]
    assert house.module.led("database")["said"] == "database is the primary"
    house.leader = ""
    assert "waited 60 s for Patroni to have a primary" in house.module.led("database")["data"]


def test_the_way_back_is_for_the_last_machine_and_forgets_the_cluster(tmp_path: Path) -> None:
    assert "worker.drain database-2" in House(tmp_path, *TWO).own().module.alone("database")["data"]
    house = House(tmp_path, "ready", "gone").own()
    house.leader = "somebody"
    assert "database.switchover database" in house.module.alone("database")["data"]
    house.leader = "database"
    assert "the last machine" in house.module.alone("database")["said"]
    status = {"leader": "database", "members": {"database": {}, "database-2": {}}}
    house.answers["patroni.status"] = status
    assert "Patroni still knows database-2" in house.module.alone("database")["data"]
    # A run that died has taken Patroni away.
    house.failing[("database", "patroni.status")] = MachineError("no configuration")
    assert "has no Patroni" in house.module.alone("database")["said"]
    house.module.dissolve("database")
    placed = house.placement(DATABASE_MAP)
    assert (placed.clustered, placed.dcs) == (False, False)
    assert "database" not in house.store.rows["registry"]
    assert house.module.alone("database")["said"] == "there is no cluster any more"


@pytest.mark.parametrize(
    "step",
    ["found", "admit", "stream", "register", "begin_drain", "retire", "shut_out", "alone",
     "dissolve"],
)  # fmt: skip
def test_no_step_is_taken_without_the_lock(tmp_path: Path, step: str) -> None:
    way = "cluster watched" if step == "found" else "cluster there"
    house = House(tmp_path, *TWO, way=way)
    before = dict(house.store.rows)
    assert "is not held any more" in getattr(house.module, step)("database")["data"]
    assert house.store.rows == before
    assert house.calls == []
