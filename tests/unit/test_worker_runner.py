"""The runner ``worker``: the steps of coming and going, on machines that only answer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from saltworks import joins, members, owners, registry
from saltworks.minions import MachineError

from tests.unit.house import held, living
from tests.unit.worker_house import MAIN_URL, URL, House

#: The front's state run, in which clients are told for as long as it takes.
FRONTED = [("proxy", "nginx_config.notice", 0), ("proxy", "state.sls", "roles")]


def brought(*names: str) -> list[tuple[str, str]]:
    return [(name, f"saltutil.sync_{kind}") for kind in ("states", "modules") for name in names]


def test_a_front_that_cannot_tell_clients_has_its_state_run_all_the_same(tmp_path: Path) -> None:
    house = House(tmp_path, "ready").own()
    house.store.rows["joins"] = {"sync-1": {"generation": 1, "finished": 1.0, "stamps": {}}}
    house.failing[("proxy", "nginx_config.notice")] = MachineError("the answer was lost")
    assert house.module.front("sync-1")["said"] == "proxy: 2 states, 1 changed"
    assert house.calls == [*brought("proxy"), *FRONTED]
    assert house.store.rows["joins"]["sync-1"]["stamps"] == {}, "its join is over"


def test_a_join_is_stamped_step_by_step_and_ends_ready(tmp_path: Path) -> None:
    house = House(tmp_path)
    for step in (
        "begin", "sync", "converge", "healthy", "caught_up", "register", "front",
        "served", "finish",
    ):  # fmt: skip
        answer = getattr(house.module, step)("sync-1")
        assert "retcode" not in answer, answer
    assert house.state() == "ready"
    row = house.store.rows["joins"]["sync-1"]
    member = registry.of(house.store.rows["registry"])["sync-1"]
    assert list(joins.report(row)["phases"]) == list(joins.PHASES[1:])
    assert joins.finished(row, member)
    assert house.calls == [
        *brought("sync-1", "proxy"),
        ("sync-1", "network.ip_addrs"),
        ("sync-1", "network.ip_addrs6"),
        ("sync-1", "state.sls", "roles"),
        ("sync-1", "synapse_worker.healthy", [URL], 3, 0.15, 60),
        ("sync-1", "synapse_worker.caught_up", [URL], "http://198.18.0.12:9093", 60),
        ("proxy", "synapse_worker.answering", [URL]),
        *FRONTED,
        house.calls[12],
    ]
    front, function, requests, names, log, address, port, name, bound = house.calls[12]
    assert bound == 30
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
    house.module.front("sync-1")
    house.module.emptied("sync-1")
    assert house.module.retire("sync-1")["said"] == "sync-1: 0 states, 0 changed"
    assert house.calls == [
        *brought("proxy"),
        *FRONTED,
        ("sync-1", "synapse_worker.emptied", [8101], 90),
        *brought("sync-1"),
        ("sync-1", "state.sls", "roles.worker.absent"),
    ]
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
    # Its services were restarting, no more.
    house.dead = {URL}
    front = iter([{URL: False, MAIN_URL: True}, {URL: True, MAIN_URL: True}])
    house.answers["synapse_worker.answering"] = lambda urls: next(front)
    assert "sync-1: answers again" in house.module.lose("sync-1")["data"]
    assert house.state() == "ready"
    house.answers["synapse_worker.answering"] = house.health
    house.failing[("sync-1", "synapse_worker.healthy")] = MachineError("20 s and nothing")
    said = house.module.lose("sync-1")["said"]
    assert ("sync-1", "synapse_worker.stop", ["synapse-worker@sync-1-1"]) in house.calls
    assert said == "sync-1 is gone; synapse-worker@sync-1-1 stopped there"
    # Else two would do the same.
    house = House(tmp_path, "ready")
    house.dead = {URL}
    house.failing[("sync-1", "synapse_worker.healthy")] = MachineError("20 s and nothing")
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


def test_a_media_worker_is_retired_once_its_cache_has_no_only_copy(tmp_path: Path) -> None:
    house = House(tmp_path, "draining", "media").own()
    house.answers["media_store.leave"] = {"files": 7, "removed": 7, "bytes": 70}
    assert "the store has all 7 files" in house.module.retire("media-1")["said"]
    assert house.calls[-3:] == [
        ("media-1", "synapse_worker.stop", ["synapse-worker@media-1-1"]),
        ("media-1", "media_store.leave", "synapse", "/var/lib/synapse/media_store", 600),
        ("media-1", "state.sls", "roles.worker.absent"),
    ]


def test_a_media_worker_with_an_only_copy_is_not_retired(tmp_path: Path) -> None:
    house = House(tmp_path, "draining", "media").own()
    house.failing[("media-1", "media_store.leave")] = MachineError("the store does not take it")
    answer = house.module.retire("media-1")
    assert answer["retcode"] == 1
    for words in (
        "the store does not take it", "docs/m3-media.md", "salt-run reconcile.run",
    ):  # fmt: skip
        assert words in answer["data"]
    assert house.asked("state.sls") == []


def test_a_worker_without_media_is_retired_without_a_look_at_the_store(tmp_path: Path) -> None:
    house = House(tmp_path, "draining").own()
    house.module.retire("sync-1")
    assert not house.asked("media_store.leave")
    assert not house.asked("synapse_worker.stop")
