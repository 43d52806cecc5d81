"""Reconcile's decisions: what is done about which machine, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import reconcile
from saltworks.membership import Declared
from saltworks.reconcile import Action, Seen, decided, verdicts, waits
from saltworks.registry import Member, State

KEY, OTHER = "a" * 64, "b" * 64
NOW = 1000.0


def member(state: State, minion: str = "sync-1", key: str = KEY) -> dict[str, Member]:
    return {minion: Member(minion, "sync", "", state, "2026-11-26T17:00:00Z", 1, key)}


def seen(members: dict[str, Member], **row: Any) -> Seen:
    """All is well with the members, but for what is said."""
    well = {
        "declared": {name: Declared("sync") for name in members},
        "keys": {name: each.key for name, each in members.items()},
        "answering": set(members),
    }
    return Seen(members, **{**well, **row})


def done(what: Seen) -> list[tuple[str, str]]:
    return [(action.what, action.minion) for action in decided(what, NOW)]


def test_when_all_is_as_declared_nothing_is_done() -> None:
    assert decided(Seen({}), NOW) == []
    assert done(seen(member("ready"))) == []
    assert done(seen(member("ready"), healthy={"sync-1": True})) == []
    # Of whom nobody could say it is not believed that it is dead.
    assert done(seen(member("ready"), healthy={}, answering=set())) == []


def test_who_was_let_in_is_settled_once_and_again_only_by_another_key() -> None:
    known = {"sync-1": Declared("sync")}
    assert done(Seen({}, declared=known, let_in={"sync-1": KEY})) == [("settle", "sync-1")]
    states: list[State] = ["joining", "ready", "draining", "gone"]
    for state in states:
        assert ("settle", "sync-1") not in done(seen(member(state), let_in={"sync-1": KEY}))
    new = seen(member("gone", key=OTHER), let_in={"sync-1": KEY}, answering=())
    assert done(new) == [("settle", "sync-1")]
    assert done(Seen({}, let_in={"sync-1": KEY})) == [], "the map does not name it"


@pytest.mark.parametrize("state", ["joining", "gone"])
def test_who_was_admitted_or_is_back_joins_when_it_answers_with_its_own_key(state: State) -> None:
    here = member(state)
    assert done(seen(here)) == [("join", "sync-1")]
    without: list[dict[str, Any]] = [
        {"answering": set()},
        {"keys": {}},
        {"keys": {"sync-1": OTHER}},
        {"not_before": {"sync-1": NOW + 1}},
    ]
    for missing in without:
        assert done(seen(here, **missing)) == [], missing
    assert done(seen(here, not_before={"sync-1": NOW})) == [("join", "sync-1")]


def test_a_join_that_was_cut_is_gone_on_with() -> None:
    assert done(seen(member("ready"), unfinished={"sync-1"})) == [("join", "sync-1")]
    assert done(seen(member("ready"), unfinished={"sync-1"}, answering=())) == []


def test_who_was_drained_or_is_no_longer_declared_leaves_and_stays_away() -> None:
    states: list[State] = ["joining", "ready", "draining"]
    reasons: list[dict[str, Any]] = [
        {"out": {"sync-1"}},
        {"declared": {}},
        {"declared": {"sync-1": Declared("persister")}},
        {"declared": {"sync-1": Declared("sync", processes=2)}},
        {"declared": {"sync-1": Declared("sync", reads=True)}},
    ]
    for state in states:
        for gone in reasons:
            assert done(seen(member(state), **gone)) == [("leave", "sync-1")], (state, gone)
    assert done(seen(member("draining"))) == [("leave", "sync-1")], "its run died"
    assert done(seen(member("gone"), out={"sync-1"}, let_in={"sync-1": KEY})) == []
    assert done(seen(member("gone"), declared={})) == []
    # It comes as what it is declared now.
    for other in (Declared("persister"), Declared("sync", processes=2)):
        again = seen(member("gone"), declared={"sync-1": other})
        assert done(again) == [("join", "sync-1")], other


def test_who_is_dead_is_lost_though_it_was_to_leave() -> None:
    reasons: list[dict[str, Any]] = [{"out": {"sync-1"}}, {"declared": {}}]
    for gone in reasons:
        dead = seen(member("ready"), healthy={"sync-1": False}, answering=(), **gone)
        assert done(dead) == [("lose", "sync-1")]
        for state in STATES:
            away = seen(member(state), answering=(), **gone)
            assert done(away) == [("lose", "sync-1")], state
            assert done(seen(member(state), **gone)) == [("leave", "sync-1")]
    assert done(seen(member("draining"), answering=())) == [("lose", "sync-1")]
    # It serves, and its minion alone is silent: what it writes must not be given to another yet.
    serves = seen(member("ready"), healthy={"sync-1": True}, answering=(), out={"sync-1"})
    assert done(serves) == [("leave", "sync-1")]


STATES: list[State] = ["joining", "draining"]


def test_what_is_being_told_comes_to_its_end_before_all_else() -> None:
    members = {**member("ready", "a-lost"), **member("joining", "b-cut"), **member("gone", "c")}
    for untold in ({"b-cut"}, {"c"}, {"forgotten"}):
        what = seen(
            members,
            healthy={"a-lost": False},
            answering=(),
            untold=untold,
            late={"a-lost": 0.0},
            not_before={"b-cut": NOW + 1000},
        )
        assert done(what) == [("tell", *untold)], "nothing is asked of the member itself"


def test_who_could_not_be_told_hears_of_it_when_it_answers() -> None:
    rows = {**member("ready"), **member("joining", "sync-2")}
    assert done(seen(rows, late={"sync-1": 0.0})) == [("tell", "sync-1"), ("join", "sync-2")]
    assert done(seen(rows, late={"sync-1": NOW + 1})) == [("join", "sync-2")]
    away = seen(rows, late={"sync-1": 0.0}, answering=())
    assert done(away) == []
    assert "does not answer" in waits(away, NOW)["sync-1"]
    assert "tried again after" in waits(seen(rows, late={"sync-1": NOW + 1}), NOW)["sync-1"]


def test_what_is_not_done_says_what_it_waits_for() -> None:
    here = member("joining")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"answering": set()}, "its salt-minion does not answer"),
        ({"keys": {}}, "the key that was admitted is not the accepted one"),
        ({"not_before": {"sync-1": NOW + 1}}, "its join failed, tried again after 1970-"),
        ({"barred": {"sync-1": "the bus is away"}}, "the bus is away"),
        ({"out": {"sync-1"}, "not_left_before": {"sync-1": NOW + 1}}, "its leave failed"),
        (
            {"out": {"sync-1"}, "answering": (), "not_lost_before": {"sync-1": NOW + 1}},
            "to go on without it failed, tried again after 1970-",
        ),
    ]
    for row, words in cases:
        if "not_lost_before" in row:
            here = member("draining")
        what = seen(here, **row)
        assert words in waits(what, NOW).get("sync-1", "")
        assert bool(words) == ("sync-1" in waits(what, NOW)) == (done(what) == []), row
    assert waits(seen(member("ready")), NOW) == {}
    assert waits(seen(member("gone"), out={"sync-1"}, answering=()), NOW) == {}
    bare = Seen({}, declared={"sync-9": Declared("sync")})
    assert waits(bare, NOW) == {"sync-9": "its key is not accepted: invite it, or accept its key"}


def well(**machines: list[bool]) -> dict[str, dict[str, bool]]:
    return {
        name.replace("_", "-"): {
            f"{name.replace('_', '-')}-{number}": row for number, row in enumerate(rows, 1)
        }
        for name, rows in machines.items()
    }


def test_who_does_not_answer_at_the_front_is_lost_but_not_when_nobody_does() -> None:
    mixed = well(sync_1=[False], sync_2=[True])
    for main in (True, False):
        assert verdicts(mixed, (), main) == {"sync-1": False, "sync-2": True}
    # Main answers, so the front is not cut off, however many are dead.
    none = well(sync_1=[False], sync_2=[False])
    assert verdicts(none, (), True) == {"sync-1": False, "sync-2": False}
    assert verdicts(none, (), False) == {}
    assert verdicts(well(sync_1=[False]), (), False) == {}
    blind = waits(seen(member("ready"), healthy={}, blind="proxy"), NOW)
    assert blind["proxy"].startswith("cannot say who is healthy")
    lost = decided(seen(member("ready"), healthy={"sync-1": False}), NOW)
    assert lost == [Action("lose", "sync-1", "its processes do not answer")]


def test_one_process_is_enough_unless_the_other_has_a_duty() -> None:
    half = well(writer_1=[True, False])
    assert verdicts(half, (), True) == {"writer-1": True}
    assert verdicts(half, {"writer-1-1"}, True) == {"writer-1": True}
    assert verdicts(half, {"writer-1-2"}, True) == {"writer-1": False}
    both = {"writer-1-1", "writer-1-2"}
    assert verdicts(half, both, True) == {"writer-1": False}
    assert verdicts(well(writer_1=[True, True]), both, True) == {"writer-1": True}


def test_first_what_users_feel_then_who_comes_then_who_goes() -> None:
    members = {
        **member("ready", "a-leaves"), **member("joining", "b-failed"),
        **member("joining", "c-joins"), **member("ready", "d-lost"),
        **member("draining", "e-leaves"),
    }  # fmt: skip
    what = seen(
        members,
        declared={name: Declared("sync") for name in [*members, "f-new"]},
        out={"a-leaves"},
        let_in={"f-new": KEY},
        healthy={"d-lost": False},
        not_before={"b-failed": NOW - 1},
    )
    assert done(what) == [
        ("lose", "d-lost"), ("settle", "f-new"), ("join", "c-joins"), ("join", "b-failed"),
        ("leave", "a-leaves"), ("leave", "e-leaves"),
    ]  # fmt: skip


def test_a_join_that_fails_is_tried_ever_less_often() -> None:
    waits = [reconcile.next_try(failures, NOW) - NOW for failures in range(1, 8)]
    assert waits == [60, 120, 240, 480, 960, 1800, 1800]


def test_a_loss_that_fails_is_tried_again_at_once_then_less_often() -> None:
    assert [reconcile.next_loss(failures, NOW) - NOW for failures in range(1, 6)] == [
        0, 60, 120, 120, 120,
    ]  # fmt: skip
    dead = {"healthy": {"sync-1": False}, "not_left_before": {"sync-1": NOW + 1}}
    assert done(seen(member("ready"), **dead)) == [("lose", "sync-1")]
    later = seen(member("ready"), **dead, not_lost_before={"sync-1": NOW + 1})
    assert done(later) == []
    assert "its processes do not answer; to go on without it failed" in waits(later, NOW)["sync-1"]
    assert decided(later, NOW + 1) != []
