"""What has become of a cluster in the switches so far, and how much WAL may be held on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

module = load("_modules", "saltworks_pgserver")

FENCED = {"moment": "0/5"}
FOLLOWED = {**FENCED, "followed": "database"}
PARTED = {**FOLLOWED, "parted": True}
PROMOTED = {"moment": "0/9"}


@pytest.mark.parametrize(
    ("takes", "fenced", "promoted", "stands"),
    [
        (True, None, None, "open"),
        (True, FENCED, None, "open"),
        (False, FENCED, None, "fenced"),
        (False, FOLLOWED, None, "follower"),
        (True, None, PROMOTED, "promoted"),
        (False, None, PROMOTED, "undone"),
        # Both are there when a run has died between writing the one and taking away the other.
        (True, FOLLOWED, PROMOTED, "promoted"),
        (True, PARTED, PROMOTED, "loose"),
        (True, PARTED, None, "loose"),
        (False, PARTED, None, "parted"),
    ],
)
def test_what_has_become_of_it(takes: bool, fenced: Any, promoted: Any, stands: str) -> None:
    assert module.stands(takes, fenced, promoted) == stands


@pytest.mark.parametrize("stands", ["open", "promoted", "undone", "parted", "loose"])
def test_what_cannot_follow_is_refused_with_the_next_step(stands: str) -> None:
    with pytest.raises(CommandExecutionError, match=r"^/data: .*orch\.m3\.database"):
        module.must_follow("/data", stands)


@pytest.mark.parametrize(
    ("state", "by_itself", "by_hand"),
    [
        ("open", False, True),
        ("fenced", False, False),
        ("follower", False, True),
        ("promoted", True, False),
        ("undone", True, False),
        ("parted", False, False),
        ("loose", True, False),
    ],
)
def test_what_is_fenced_again(state: str, by_itself: bool, by_hand: bool) -> None:
    assert module.stands_down(state, True, False) is by_itself
    assert module.stands_down(state, True, True) is by_hand
    assert module.stands_down(state, False, True) is False


def test_what_can_follow_is_not() -> None:
    for stands in ("fenced", "follower"):
        module.must_follow("/data", stands)


def test_half_of_what_is_free_may_be_held_unless_others_hold_it() -> None:
    assert module.wal_bound(-1, 0, 8 << 30) == 4096
    assert module.wal_bound(-1, 0, 1 << 20) == module.LEAST_WAL_MB
    assert module.wal_bound(-1, 1, 8 << 30) is None
    assert module.wal_bound(2048, 0, 8 << 30) is None


@pytest.mark.parametrize(("setting", "again"), [(-1, True), (2048, False)])
def test_the_setting_says_whether_wal_is_bound_and_not_what_is_written_down(
    monkeypatch: pytest.MonkeyPatch, setting: int, again: bool
) -> None:
    did: list[Any] = []

    def configure(at: Any, **settings: Any) -> None:
        did.append(settings)
        if len(did) == 1:
            raise CommandExecutionError("no such luck")

    kept: dict[str, Any] = {}
    at = {"data": "/data"}
    vars(module)["__salt__"] = {
        "pgcluster.locate": lambda cluster: cluster, "pgcluster.free_bytes": lambda path: 8 << 30,
    }  # fmt: skip
    monkeypatch.setattr(module, "sql", lambda at, script: [-1 if not did else setting, 0])
    monkeypatch.setattr(module, "configure", configure)
    monkeypatch.setattr(module, "record", lambda at, name, value: kept.update({name: value}))
    monkeypatch.setattr(module, "recorded", lambda at, name: kept.get(name))
    with pytest.raises(CommandExecutionError, match="no such luck"):
        module.bound(at, True)
    # To be taken away again, whatever came of it.
    assert kept == {"bounded": {"max_slot_wal_keep_size": "4096MB"}}
    name = "max_slot_wal_keep_size"
    assert module.bound(at, True) == ([name] if again else [])
    assert did == [{name: "4096MB"}] * (2 if again else 1)


UPSTREAM = {"host": "database"}


@pytest.mark.parametrize(
    ("reasons", "good"),
    [
        ((None, False, False), False),
        (({}, False, False), False),
        ((UPSTREAM, False, False), True),
        ((None, True, False), True),
        ((None, False, True), True),
        ((UPSTREAM, True, False), False),
        ((UPSTREAM, False, True), False),
        ((None, True, True), False),
        ((UPSTREAM, True, True), False),
    ],
)
def test_what_may_serve_is_fenced_for_one_reason_only(reasons: Any, good: bool) -> None:
    if good:
        module.must_say_why(*reasons)
        return
    with pytest.raises(CommandExecutionError, match=r"upstream.*discard=True.*taken_back=True"):
        module.must_say_why(*reasons)


@pytest.mark.parametrize(
    ("name", "where"),
    [("saltworks_pgstandby", ("15/main",)), ("saltworks_pglogical", ("15/main", "synapse"))],
)
def test_without_a_reason_nothing_is_even_looked_at(name: str, where: Any) -> None:
    way = load("_modules", name, {"pgserver.must_say_why": module.must_say_why})
    for reasons in ({}, {"discard": True, "taken_back": True}):
        with pytest.raises(CommandExecutionError, match="exactly one of"):
            way.stand_down(*where, **reasons)


def test_what_a_switch_wrote_down_is_taken_back_with_it(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    def write(path: str, value: Any) -> None:
        kept[Path(path).stem] = value
        Path(path).write_text("")

    vars(module)["__salt__"] = {
        "pgcontent.folder": lambda at: str(tmp_path),
        "pgcontent.made_folder": lambda at: str(tmp_path),
        "pgcluster.write_json": write,
        "pgcluster.read_json": lambda path: kept[Path(path).stem] if Path(path).exists() else None,
    }

    def found() -> dict[str, str]:
        return {path.stem: kept[path.stem]["moment"] for path in tmp_path.iterdir()}

    module.turned({}, "fenced", FENCED)
    module.turned_back({}, "promoted")
    assert found() == {"fenced": "0/5"}
    module.turned({}, "promoted", PROMOTED)
    assert found() == {"promoted": "0/9"}
    # Written once more when it is complete; what was before it is not lost by that.
    module.turned({}, "promoted", {**PROMOTED, "compared": 7})
    module.turned_back({}, "promoted", parted=True)
    assert found() == {"fenced": "0/5"}
    assert kept["fenced"]["parted"] is True
    module.turned_back({}, "fenced")
    assert found() == {}
