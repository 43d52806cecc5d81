"""Membership, telling, joins' record and what shows that a worker serves."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import (
    joins,
    members,
    membership,
    registry,
    routing,
    serving,
    slices,
    telling,
    worker_table,
    workers,
)
from saltworks.errors import Refused
from saltworks.telling import Telling

from tests import cluster
from tests.cluster import WORKER_MAP, member, placement
from tests.unit.house import Records

NAMED: dict[str, Any] = {
    **WORKER_MAP,
    "machines": {
        **WORKER_MAP["machines"],
        "sync-9": {"role": "worker", "kind": "client", "address": "198.18.0.99"},
    },
}


def test_the_map_says_who_may_be_a_worker_and_of_which_kind() -> None:
    assert membership.declared(NAMED, "sync-9") == membership.Declared("client", "198.18.0.99")
    assert membership.declared(NAMED, "sync-3") == membership.Declared("sync")
    for minion in ("proxy", "synapse", "stranger", "sync", "sync-"):
        assert membership.declared(NAMED, minion) is None, minion
    assert membership.may_be_invited(NAMED, "sync-*")
    assert membership.may_be_invited(NAMED, "sync-eu-*")
    for pattern in ("s-*", "sy*", "*", "proxy", "other-*"):
        assert not membership.may_be_invited(NAMED, pattern), pattern
    # A machine that the map names is that machine: no pool's invite makes a worker of it.
    named = {**NAMED["machines"], "sync-1": {"role": "redis", "address": "198.18.0.98"}}
    assert membership.declared({**NAMED, "machines": named}, "sync-1") is None
    named["sync-1"]["role"] = "database"
    found = membership.declared({**NAMED, "machines": named}, "sync-1")
    assert found == membership.Declared("database", "198.18.0.98")


def test_an_address_is_the_maps_or_one_of_the_workers_networks_that_nobody_else_has() -> None:
    assert membership.placed(NAMED, "sync-9", ["203.0.113.1"]) == "198.18.0.99"
    assert membership.placed(NAMED, "sync-3", ["127.0.0.1", "198.19.0.3"]) == "198.19.0.3"
    for told in ([], ["198.18.0.11"], ["203.0.113.1"], ["198.19.0.3", "198.19.0.4"]):
        with pytest.raises(Refused, match="addresses of its own in the workers' networks"):
            membership.placed(NAMED, "sync-3", told)
    with pytest.raises(Refused, match="is no worker or database in the cluster map"):
        membership.placed(NAMED, "proxy", ["198.19.0.3"])


def told(rows: tuple[registry.Member, ...], minion: str, state: registry.State) -> Telling:
    return telling.plan(WORKER_MAP, placement(*rows), minion, state)


def names(plan: Telling) -> set[str]:
    return {name for group in plan.apply for name in group}


def test_a_generic_worker_tells_nobody() -> None:
    rows = cluster.members({"sync": 2, "persister": 1})
    coming = dataclasses.replace(member("sync-9", "sync", 90), state="joining")
    assert told((*rows, coming), "sync-9", "ready") == Telling()
    states: list[registry.State] = ["draining", "gone"]
    for state in states:
        assert told(rows, "sync-1", state) == Telling()


def test_a_writer_tells_all_who_stop_before_any_starts_main_first() -> None:
    rows = cluster.members({"sync": 1, "persister": 1})
    writer = dataclasses.replace(member("persister-2", "persister", 91), state="joining")
    coming = told((*rows, writer), "persister-2", "ready")
    assert coming.apply[0] == ("synapse",)
    assert names(coming) == {"synapse", "sync-1", "persister-1", "persister-2"}
    assert coming.stop["synapse"] == ("synapse",)
    assert coming.stop["persister-1"] == ("synapse-worker@persister-1-1",)
    assert "sync-1" not in coming.stop, "it writes nothing: it restarts after them"
    both = (*rows, dataclasses.replace(writer, state="ready"))
    leaving = told(both, "persister-2", "draining")
    assert leaving.stop["persister-2"] == ("synapse-worker@persister-2-1",)
    lost = told(both, "persister-2", "gone")
    for plan in (leaving, lost):
        assert "persister-2" not in names(plan)
    assert "persister-2" not in lost.stop, "nothing can be stopped there"


def test_who_comes_now_takes_no_duty_from_who_is_there_longer() -> None:
    rows = cluster.members({"background": 1})
    # It was admitted before the other became ready.
    early = dataclasses.replace(member("background-2", "background", 0), state="joining")
    assert early.since < rows[0].since
    assert told((*rows, early), "background-2", "ready") == Telling()
    # And whose state does not change keeps its age.
    oldest = dataclasses.replace(early, state="ready")
    assert told((*rows, oldest), "background-2", "ready") == Telling()


LEFT: dict[str, Any] = {
    "persister-2": {
        "stop": {
            "synapse": ["synapse"],
            "persister-1": ["synapse-worker@persister-1-1"],
            "persister-2": ["synapse-worker@persister-2-1"],
        },
        "apply": [["synapse"], ["persister-1", "persister-2"], ["sync-1", "sync-8"]],
        "changed": True,
    }
}


def test_what_a_telling_left_is_done_without_those_who_are_gone_or_do_not_answer() -> None:
    rows = cluster.members({"sync": 1, "persister": 2})
    at = placement(*rows)
    whole = telling.left(at, LEFT)
    assert whole.apply == (("synapse",), ("persister-1", "persister-2", "sync-1"))
    assert set(whole.stop) == {"synapse", "persister-1", "persister-2"}
    dead = telling.left(at, LEFT, {"persister-2", "sync-1"})
    assert dead == Telling(
        {"persister-1": ("synapse-worker@persister-1-1",), "synapse": ("synapse",)},
        (("synapse",), ("persister-1",)),
    )
    gone = tuple(
        dataclasses.replace(row, state="gone") if row.minion == "persister-2" else row
        for row in rows
    )
    after = telling.left(placement(*gone), LEFT)
    assert (names(after), set(after.stop)) == (
        {"synapse", "persister-1", "sync-1"}, {"synapse", "persister-1"},
    )  # fmt: skip
    leaves = tuple(
        dataclasses.replace(row, state="draining") if row.minion == "persister-2" else row
        for row in rows
    )
    drained = telling.left(placement(*leaves), LEFT)
    assert "persister-2" in drained.stop, "it does not go on with what others do"
    assert "persister-2" not in names(drained)
    # What runs by today's plan is kept alone: a process that there is no more is not waited for.
    odd = {"x": {**LEFT["persister-2"], "stop": {"persister-1": ["synapse-worker@persister-1-7"]}}}
    assert telling.left(at, odd).stop == {}


def test_machines_stay_stopped_until_the_registry_says_the_new() -> None:
    assert telling.stopped(LEFT) == ()
    before = {"persister-2": {**LEFT["persister-2"], "changed": False}}
    assert telling.stopped(before) == ("persister-1", "persister-2", "synapse")


def test_who_is_told_later_is_still_there() -> None:
    at = placement(*cluster.members({"sync": 1, "persister": 1}))
    rows: dict[str, Any] = {
        "sync-1": {"services": [], "not_before": 7.0},
        "persister-1": {"services": ["synapse-worker@persister-1-1", "synapse-worker@x"]},
        "synapse": {"services": ["synapse"]},
        "persister-9": {"services": ["synapse-worker@persister-9-1"]},
    }
    found = telling.late(at, rows)
    assert {name: row["services"] for name, row in found.items()} == {
        "sync-1": [], "persister-1": ["synapse-worker@persister-1-1"], "synapse": ["synapse"],
    }  # fmt: skip
    assert found["sync-1"]["not_before"] == 7.0
    beside = telling.late(at, {"storage": {}, "dcs-9": {}}, ["storage", "synapse"])
    assert list(beside) == ["storage"]


@pytest.mark.parametrize("stage", ["nobody", "told", "stopped"])
def test_no_state_run_opens_the_door_or_starts_what_is_stopped(stage: str) -> None:
    stopped = ("persister-1", "synapse") if stage == "stopped" else ()
    at = dataclasses.replace(
        placement(*cluster.members({"sync": 1, "persister": 1})),
        telling=() if stage == "nobody" else ("persister-1",),
        stopped=stopped,
    )

    def states(machine: str) -> list[str]:
        found = slices.slice_for(WORKER_MAP, at, machine, lambda name: f"<{name}>")
        rows: list[str] = found["saltworks"]["states"]
        return rows

    assert states("proxy")[-1] == ("nginx" if stage == "nobody" else "nginx.loaded")
    for machine in ("persister-1", "synapse", "sync-1"):
        prepared = machine in stopped
        assert ("synapse.prepared" in states(machine)) is prepared
        assert ("synapse" in states(machine)) is not prepared


def test_a_telling_is_looked_at_when_there_is_no_member_any_more() -> None:
    """The last writer was lost and forgotten, and main still asks it."""
    bare = {name: row for name, row in WORKER_MAP["machines"].items() if row["role"] != "worker"}
    cmap = {**WORKER_MAP, "machines": bare}
    house: Any = SimpleNamespace(
        store=Records(), map=lambda: cmap, placement=lambda _: placement()
    )
    assert not members.any_known(house)
    for record in (telling.TOLD, telling.LATE):
        house.store.rows = {record: {"synapse": {"services": ["synapse"], "stop": {}}}}
        assert members.any_known(house)
    asked: Any = SimpleNamespace(answering=lambda *_: {"synapse"})
    keys: Any = SimpleNamespace(fingerprints=lambda _: {})
    seen = members.gathered(house, keys, lambda: asked, 0.0)
    assert (list(seen.late), seen.answering) == (["synapse"], {"synapse"})


def test_each_phase_is_the_time_since_the_one_before() -> None:
    one = registry.Member("sync-2", "sync", "", "joining", "2026-11-26T17:00:00Z", 2, "k")
    row = joins.begun({"generation": 1, "finished": 5.0}, one, 100.0, 101.5)
    assert not joins.finished(row, one)
    for phase, at in (("synced", 103.0), ("highstate", 110.0), ("served", 112.0)):
        row = joins.stamped(row, phase, at)
    assert joins.report(row) == {
        "phases": {"begun": 1.5, "synced": 1.5, "highstate": 7.0, "served": 2.0},
        "total_seconds": 12.0,
    }
    failed = joins.ended(row, ["join-healthy: no"], 120.0)
    assert (failed["failures"], failed["not_before"], failed["error"]) == (
        1, 180.0, "join-healthy: no",
    )  # fmt: skip
    again = joins.begun(failed, one, 100.0, 180.0)
    assert again["failures"] == 1
    later = joins.begun(failed, dataclasses.replace(one, generation=3), 100.0, 180.0)
    assert (again["error"], later["error"]) == ("join-healthy: no", ""), "that was another time"
    assert joins.ended(later, ["no"], 200.0)["not_before"] == 320.0, "and twice as long"
    assert joins.anew(later)["failures"] == 0, "an operator lets it in anew"
    stays = joins.left(later, "leave", ["leave-draining: no"], 200.0)
    assert stays["leaving"] == {
        "what": "leave", "failures": 1, "error": "leave: leave-draining: no", "not_before": 260.0,
    }  # fmt: skip
    lost = joins.left(stays, "lose", ["no"], 200.0)
    assert (lost["leaving"]["failures"], lost["leaving"]["not_before"]) == (1, 200.0), "at once"
    assert joins.left(lost, "lose", ["no"], 200.0)["leaving"]["not_before"] == 260.0
    rows = {"a": stays, "b": stays, "c": later}
    assert joins.unblamed(rows, {"b"}) == {"a": later, "b": stays, "c": later}
    assert joins.left(stays, "leave", [], 300.0) == later
    done = joins.ended(again, [], 190.0)
    assert joins.finished(done, one)
    assert not joins.finished(done, dataclasses.replace(one, generation=3))
    assert not joins.finished(done, dataclasses.replace(one, state="gone"))
    with pytest.raises(KeyError, match="no phase is called 'lunch'"):
        joins.stamped(row, "lunch", 1.0)


def test_each_request_that_shows_who_serves_goes_to_the_group_it_is_of() -> None:
    known = worker_table.table()
    for group, (method, path) in serving.REQUESTS.items():
        found = routing.matching(method, path.replace("{n}", "7"), known)
        assert found is not None, group
        assert found.group == group
    asked = {row.name for row in known.kinds.values() if known.groups[row.name].endpoints}
    assert {kind for kind in known.kinds if serving.of_kind(kind)} >= asked


def test_with_two_machines_of_each_kind_every_process_gets_requests() -> None:
    known = worker_table.table()
    found = workers.of(placement(*cluster.members(dict.fromkeys(known.kinds, 2))))
    for kind in known.kinds:
        requests = serving.of_kind(kind)
        reached: set[str] = set()
        for number in range(200):
            for row in requests:
                fill = {name: text.replace("{n}", str(number)) for name, text in row.items()}
                routed = routing.route(
                    routing.Request(fill["method"], fill["path"], fill["authorization"]), found
                )
                # As nginx does, but for its ring: a key has one server of the pool.
                key = routed.key if routed.balance != "none" else str(number)
                chosen = hashlib.sha256(key.encode()).digest()[0] % len(routed.servers)
                reached.add(routed.servers[chosen].name)
        wanted = {row.name for row in found.processes.values() if row.kind == kind}
        assert not requests or reached >= wanted, kind


def test_when_a_member_was_admitted_is_told_in_summer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one = dataclasses.replace(member("sync-1", "sync", 1), since="2026-07-01T00:00:00Z")
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "Europe/Berlin")
        time.tzset()
        assert members.admitted_at(one) == 1782864000.0
    time.tzset()
