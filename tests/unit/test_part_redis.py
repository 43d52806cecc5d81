"""M4's part workers: what each machine gets of it, its window, and what it must show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from saltworks import milestone, moves, parts, plan, slices, switch, verify, worker_slices, workers
from saltworks.minions import MachineError
from saltworks.parts import redis
from saltworks.parts.model import Steps

from tests import cluster
from tests.render.stages import AFTER_M3

MAP = cluster.WORKER_MAP
UPCOMING = {**AFTER_M3, "upcoming": {"redis": "redis"}}
MOVING = {**UPCOMING, "moving": True}
MOVED = {**AFTER_M3, "redis": "redis"}
GOING_BACK = {**MOVED, "upcoming": {"redis": ""}}


def at(row: Mapping[str, Any]) -> plan.Placement:
    return plan.Placement.recorded(MAP, row)


def slice_of(machine: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return slices.slice_for(MAP, at(row), machine, lambda name: f"<{name}>")


def test_redis_runs_from_the_preparation_until_the_way_back_is_through() -> None:
    for row in (UPCOMING, MOVING, MOVED, GOING_BACK):
        found = slice_of("redis", row)
        assert found["saltworks"]["states"] == ["base", "firewall", "redis"]
        assert found["redis"]["password"] == "<redis_password>"
        assert found["redis"]["channel"] == "lale.test"
    bare = slice_of("redis", AFTER_M3)
    assert bare["saltworks"]["states"] == ["base", "redis.absent", "firewall.absent"]
    assert "<" not in str(bare), "and no secret is left"


def test_before_the_window_redis_hears_synapse_s_machine_alone() -> None:
    assert slice_of("redis", UPCOMING)["firewall"]["ports"] == {6379: ["198.18.0.12"]}
    assert slice_of("redis", MOVED)["firewall"]["ports"] == {
        6379: ["198.18.0.12", cluster.NETWORK]
    }


def test_main_is_told_in_the_window_and_has_all_that_it_needs_before() -> None:
    found = slice_of("synapse", UPCOMING)
    formula = found["synapse"]
    assert "synapse.prepared" in found["saltworks"]["states"]
    assert "redis" not in formula["config"]
    upcoming = formula["upcoming"]
    assert upcoming["redis"]["host"] == "redis"
    assert upcoming["redis"]["password"] == "<redis_password>"
    assert upcoming["worker_replication_secret"] == "<worker_replication_secret>"
    assert [row["port"] for row in upcoming["listeners"]] == [8008, 8009, 9093]
    for name in ("saltworks_owner.Owner", "saltworks_patience.Patience", "saltworks_bus.Bus"):
        assert {"module": name, "config": {}} in upcoming["modules"]
    assert formula["certificates"]["saltworks"] == "<pki_authority>"
    # What it runs with afterwards is just that: its next state run restarts nothing.
    after = slice_of("synapse", MOVED)["synapse"]
    assert after["config"] == upcoming
    assert after["plugins"] == formula["plugins"]
    assert after["certificates"] == formula["certificates"]


def test_on_the_way_back_main_has_both_configurations() -> None:
    formula = slice_of("synapse", GOING_BACK)["synapse"]
    assert formula["upcoming"] == slice_of("synapse", AFTER_M3)["synapse"]["config"]
    assert formula["config"] == slice_of("synapse", MOVED)["synapse"]["config"]


def test_nothing_that_its_unit_is_made_of_changes_in_either_direction() -> None:
    """Else its next state run would restart it, in front of everybody."""
    found = [slice_of("synapse", row)["synapse"] for row in (AFTER_M3, UPCOMING, MOVED, GOING_BACK)]
    assert "saltworks_owner" in found[0]["plugins"]
    for key in ("plugins", "service", "version", "user"):
        assert [row[key] for row in found] == [found[0][key]] * len(found), key


@pytest.mark.parametrize("machine", sorted(MAP["machines"]))
def test_the_preparation_changes_redis_and_synapse_s_machine_alone(machine: str) -> None:
    changed = slice_of(machine, UPCOMING) != slice_of(machine, AFTER_M3)
    assert changed is (machine in ("redis", "synapse"))


@pytest.mark.parametrize("machine", sorted(MAP["machines"]))
def test_every_machine_that_it_changes_is_converged(machine: str) -> None:
    known = slices.for_orchestrations(MAP, at(AFTER_M3), {})["saltworks"]["parts"]["redis"]
    changed = slice_of(machine, MOVED) != slice_of(machine, AFTER_M3)
    assert changed is (machine in {*known["concerns"], known["machine"]} - {"proxy"})
    # What was found is not needed any more, it may be gone.
    assert "legacy" not in known["concerns"]


def test_the_front_routes_from_the_first_worker_on() -> None:
    assert slice_of("proxy", MOVED)["nginx"] == slice_of("proxy", AFTER_M3)["nginx"]
    assert set(workers.of(at(MOVED)).routes.values()) == {"main"}
    placed = replace(at(MOVED), members=cluster.members({"sync": 1}))
    found = slices.slice_for(MAP, placed, "proxy", lambda name: f"<{name}>")
    assert found["nginx"]["routing"]


def test_the_whole_of_m3_comes_before_it() -> None:
    record = {name: {"state": "achieved"} for name in ("m1", "m2", "m3.database", "m3.media")}
    (wrong,) = milestone.order_problems(record, redis.MILESTONE)
    assert "orch.m3 first" in str(wrong)
    whole = {**record, "m3.auth": {"state": "achieved"}}
    assert milestone.order_problems(whole, redis.MILESTONE) == []
    assert [row["milestone"] for row in milestone.table(record)][-2] == "M4.workers"


class Machines:
    """They answer; ``failing`` raises."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self.failing = failing
        self.door: dict[str, Any] = {"state": "open", "target": "synapse"}

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(f"{minion} {function}")
        if function == self.failing:
            raise MachineError(f"{minion}: {function} failed")
        if function == "door.close":
            self.door = {"state": "closed", "target": None}
        if function == "door.open":
            self.door = {"state": "open", "target": args[0]}
        return self.door if function == "door.status" else {"seconds": 0.1}


def test_main_takes_up_its_configuration_behind_the_shut_door() -> None:
    machines, placed = Machines(), list[str]()
    move = moves.of_part(MAP, at(UPCOMING), parts.PARTS["redis"])
    assert switch.conduct(machines, move, placed.append)["changed"]
    assert machines.calls == [
        "proxy door.status", "synapse redis_bus.reached", "proxy door.announce",
        "proxy door.close", "synapse synapse_move.leave", "synapse synapse_move.arrive",
        "proxy door.open",
    ]  # fmt: skip
    assert placed == ["moving", "arrived"]
    assert "orch.m4.workers again, or orch.m4.workers.rollback" in move.mend


def test_where_redis_is_not_reached_nobody_waits() -> None:
    machines, placed = Machines("redis_bus.reached"), list[str]()
    move = moves.of_part(MAP, at(UPCOMING), parts.PARTS["redis"])
    with pytest.raises(MachineError, match=r"redis_bus\.reached failed"):
        switch.conduct(machines, move, placed.append)
    assert (machines.door["state"], placed) == ("open", ["returned"])


def test_the_password_of_redis_is_in_no_call() -> None:
    steps, proofs = redis.steps(MAP, at(UPCOMING)), redis.proofs(MAP, at(MOVED))
    for ask in (*steps.before, *proofs.values()):
        assert "password" not in str(ask.kwargs)
    assert redis.steps(MAP, at(GOING_BACK)) == Steps()


def test_it_goes_back_once_all_workers_are_gone() -> None:
    rows = [cluster.member("sync-1", "sync", 1), cluster.member("sync-2", "sync", 2, "gone")]
    placed = replace(at(MOVED), members=tuple(rows))
    (wrong,) = parts.return_problems("m4.workers", MAP, placed)
    assert "worker.drain sync-1" in str(wrong)
    assert parts.return_problems("m4.workers", MAP, replace(placed, members=tuple(rows[1:]))) == []
    done = {"m4.workers": {"state": "achieved"}}
    assert milestone.return_problems(done, "m4.workers") == []
    final = {"m4.workers": {"state": "achieved", "finalized": 1.0}}
    (gone,) = milestone.return_problems(final, "m4.workers")
    assert "is finalized" in str(gone)


@pytest.mark.parametrize("name", ["m3.database", "m3.media", "m3.auth"])
def test_what_workers_are_on_does_not_go_back_before_them(name: str) -> None:
    assert parts.return_problems(name, MAP, at(AFTER_M3)) == []
    (wrong,) = parts.return_problems(name, MAP, at(MOVED))
    assert "orch.m4.workers.rollback first" in str(wrong)


def told(**more: Any) -> dict[str, Any]:
    ports: dict[str, Any] = {"redis": {"listeners": []}, "main": {"listeners": []}}
    return {**ports, "release": {"packages": []}, **more}


def test_its_ports_must_be_free_and_its_machines_answer() -> None:
    def listener(port: int, unit: str) -> dict[str, Any]:
        return {"listeners": [{"port": port, "program": "x", "unit": unit}]}

    def wrong(**more: Any) -> list[str]:
        return [str(row) for row in redis.problems(MAP, at(AFTER_M3), told(**more))]

    assert wrong() == []
    # Of an earlier run of its own.
    assert wrong(redis=listener(6379, "redis-server.service")) == []
    assert wrong(main=listener(9093, "synapse.service")) == []
    assert "redis: port 6379" in wrong(redis=listener(6379, "docker.service"))[0]
    assert "synapse: port 9093" in wrong(main=listener(9093, ""))[0]
    assert wrong(redis={"error": "does not answer"}) == [
        "redis: redis: does not answer -> salt redis test.ping"
    ]
    assert redis.questions(MAP, at(AFTER_M3)).keys() == told().keys()
    assert redis.questions(MAP, at({})) == {}, "that M2 comes first is said already"


def test_a_release_without_what_redis_needs_is_told_of_before_anything_is_touched() -> None:
    asked = redis.questions(MAP, at(AFTER_M3))["release"]
    assert (asked.machine, asked.function) == ("synapse", "synapse_release.lacking")
    assert asked.kwargs == {"version": MAP["releases"]["synapse"], "extra": "redis"}
    answer = told(release={"packages": ["txredisapi>=1.4.7", "hiredis"]})
    (wrong,) = redis.problems(MAP, at(AFTER_M3), answer)
    assert wrong.place == "synapse: release"
    assert "txredisapi>=1.4.7, hiredis, of Synapse's extra redis, is not in it" in wrong.what
    assert "salt salt state.apply synapse.built" in str(wrong)


def test_its_proof_is_that_redis_answers_and_synapse_is_there() -> None:
    asked = redis.proofs(MAP, at(MOVED))
    assert {key: (ask.machine, ask.function) for key, ask in asked.items()} == {
        "reached": ("synapse", "redis_bus.reached"),
        "heard": ("redis", "synapse_worker.connections"),
        "main": ("synapse", "synapse_worker.positions"),
    }
    good = {"reached": {"seconds": 0.1}, "heard": 2, "main": {}}
    assert [row.ok for row in redis.checks(MAP, at(MOVED), good)] == [True]
    for bad in ({"heard": 0}, {"main": {"error": "nobody"}}, {"reached": {"error": "away"}}):
        assert [row.ok for row in redis.checks(MAP, at(MOVED), {**good, **bad})] == [False]
    assert redis.proofs(MAP, at(AFTER_M3)) == {}
    assert redis.checks(MAP, at(AFTER_M3), {}) == []
    assert verify.placed("m4.workers", MAP, at(MOVED)).ok
    assert not verify.placed("m4.workers", MAP, at(AFTER_M3)).ok


def test_synapse_alone_on_its_machine_may_answer_workers_once_there_is_redis() -> None:
    assert verify.may_serve(at(AFTER_M3)) == verify.ALONE
    units, ports = verify.may_serve(at(MOVED))
    assert (units, ports) == (verify.ALONE[0], [*verify.ALONE[1], 9093])
    assert worker_slices.main_ports(MAP, at(MOVED)) == {9093: [cluster.NETWORK]}


def test_workers_secrets_are_made_by_it() -> None:
    known = slices.for_orchestrations(MAP, at(AFTER_M3), {})["saltworks"]["parts"]["redis"]
    assert known["secrets"] == {"redis_password": 40, "worker_replication_secret": 40}
    assert known["copies_on"] == known["copies_back_on"] == ""
