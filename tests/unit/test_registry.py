"""The registry's transitions."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import registry
from saltworks.errors import Refused
from saltworks.membership import Declared
from saltworks.registry import Member

NOW, LATER = "2026-11-26T17:00:00Z", "2026-11-26T17:01:00Z"
KEY, OTHER = "a" * 64, "b" * 64
SYNC = Declared("sync", processes=2)


def one(
    state: registry.State = "joining", minion: str = "sync-1", address: str = "198.18.0.51"
) -> dict[str, Member]:
    return {minion: Member(minion, "sync", address, state, NOW, 1, KEY)}


def test_a_machine_joins_serves_drains_and_comes_again_a_generation_later() -> None:
    rows = registry.admitted({}, "sync-1", SYNC, KEY, NOW)
    assert rows["sync-1"] == Member("sync-1", "sync", "", "joining", NOW, 1, KEY, 2)
    rows = registry.located(rows, "sync-1", "198.18.0.51")
    for state in ("ready", "draining", "gone"):
        assert rows["sync-1"].state != state
        rows = registry.moved(rows, "sync-1", state, LATER)
        assert rows["sync-1"].state == state
    assert rows["sync-1"].since == LATER
    # Another key is another machine: it may have the name of one that is gone.
    again = registry.admitted(rows, "sync-1", SYNC, OTHER, LATER)["sync-1"]
    assert (again.state, again.generation, again.key) == ("joining", 2, OTHER)
    assert registry.forgotten(rows, "sync-1") == {}


@pytest.mark.parametrize("state", ["joining", "ready", "draining"])
def test_who_is_a_member_stays_as_it_is_and_nobody_takes_its_name(state: registry.State) -> None:
    rows = one(state)
    assert registry.admitted(rows, "sync-1", SYNC, KEY, LATER) == rows
    with pytest.raises(Refused, match=r"member with another key -> salt-run worker.drain sync-1"):
        registry.admitted(rows, "sync-1", SYNC, OTHER, LATER)
    with pytest.raises(Refused, match=f"is {state} -> salt-run worker.drain sync-1 first"):
        registry.forgotten(rows, "sync-1")


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("draining", "ready"), ("gone", "ready"), ("gone", "draining"), ("ready", "joining")],
)
def test_no_state_is_skipped_or_gone_back_to(state: registry.State, wanted: registry.State) -> None:
    with pytest.raises(Refused, match=f"is {state}, which {wanted} does not follow"):
        registry.moved(one(state), "sync-1", wanted, LATER)


def test_two_members_are_never_at_one_address_unless_one_is_gone() -> None:
    rows = one() | one(minion="sync-2", address="198.18.0.52")
    with pytest.raises(Refused, match=r"at 198.18.0.51, where sync-1 is"):
        registry.located(rows, "sync-2", "198.18.0.51")
    rows = registry.moved(rows, "sync-1", "gone", LATER)
    assert registry.located(rows, "sync-2", "198.18.0.51")["sync-2"].address == "198.18.0.51"


def test_its_record_is_read_back_and_a_strange_one_is_refused() -> None:
    rows = one() | one("ready", minion="sync-2", address="198.18.0.52")
    assert registry.of(registry.rows(rows)) == rows
    good = registry.rows(one())["sync-1"]
    strange: list[dict[str, Any]] = [
        {"x": {}}, {"sync-2": good}, {"sync-1": {**good, "state": "fine"}}
    ]
    for bad in strange:
        with pytest.raises(Refused, match="registry refused"):
            registry.of(bad)
    with pytest.raises(Refused, match="is no member -> members: none"):
        registry.known({}, "sync-1")
