"""What pgBackRest says in few words, and whose turn it is to take a backup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "formulas/pgbackrest/files"
# The programs import what lies beside them.
sys.path.insert(0, str(FOLDER))
import saltworks_backup_facts as facts  # type: ignore[import-not-found] # noqa: E402
import saltworks_backup_turn as turns  # type: ignore[import-not-found] # noqa: E402

Json = dict[str, Any]
DAY = 86400
#: 2026-11-28 03:10 UTC.
NOW = 1795835400.0
TWO = 1795831200.0

INFO: Json = {
    "archive": [
        {"database": {"id": 1}, "id": "14-1"}, {"database": {"id": 2}, "id": "15-2"},
    ],
    "db": [{"id": 1}, {"id": 2}],
    "backup": [
        {
            "archive": {"start": "000000010000000000000003", "stop": "000000010000000000000003"},
            "database": {"id": 1}, "error": False, "label": "older",
            "info": {"size": 1, "repository": {"delta": 1, "size": 1}},
            "reference": None, "timestamp": {"start": 1, "stop": 2}, "type": "full",
        },
        {
            "archive": {"start": "0000000100000001000000FE", "stop": "000000010000000200000001"},
            "database": {"id": 2}, "error": True, "label": "20261128-020001F_20261128-030001D",
            "info": {"size": 90, "repository": {"delta": 3, "size": 30}},
            "reference": ["20261128-020001F"], "timestamp": {"start": 10, "stop": 20},
            "type": "diff",
        },
    ],
}  # fmt: skip


def listing(*names: str, begin: int = 100) -> Json:
    return {
        name: {"type": "file", "time": begin + number} for number, name in enumerate(names)
    } | {"0000000100000000": {"type": "path"}}


def wal(timeline: int, number: int) -> str:
    folder = f"{timeline:08X}{number // 256:08X}"
    return f"{folder}/{folder}{number % 256:08X}-{'a' * 40}.zst"


def stretch(timeline: int, first: int, last: int) -> Json:
    return {"timeline": timeline, "first": first, "last": last, "since": 0, "until": 0}


def backup(type: str, start: float, last: int = 5, timeline: int = 1) -> Json:
    return {
        "label": f"{type}-{start:.0f}", "type": type, "start": start, "stop": start + 60,
        "timeline": timeline, "first": last, "last": last,
    }  # fmt: skip


def test_backups_of_a_cluster_that_was_replaced_are_not_its_successor_s() -> None:
    (row,) = facts.backups(INFO)
    assert row == {
        "label": "20261128-020001F_20261128-030001D", "type": "diff", "start": 10, "stop": 20,
        "timeline": 1, "first": 256 + 254, "last": 513, "bytes": 90, "stored": 3,
        "damaged": True,
    }  # fmt: skip
    assert facts.archive_id(INFO) == "15-2"
    assert facts.archive_id({}) == ""
    assert facts.backups({}) == []


def test_stored_wal_is_told_in_stretches_without_a_hole() -> None:
    rows = facts.stretches(
        listing(wal(1, 254), wal(1, 255), wal(1, 256), wal(1, 258), wal(2, 258), "00000002.history",
                "0000000100000000/000000010000000000000003.00000028.backup",
                f"0000000100000001/000000010000000100000003.partial-{'b' * 40}.zst")
    )
    assert rows == [
        {"timeline": 1, "first": 254, "last": 256, "since": 101, "until": 103},
        {"timeline": 1, "first": 258, "last": 258, "since": 104, "until": 104},
        # It began when its history was stored.
        {"timeline": 2, "first": 258, "last": 258, "since": 106, "until": 105},
    ]
    assert facts.stretches({}) == []


@pytest.mark.parametrize("name", ["00000002.history", "x", "000000010000000000000003.partial"])
def test_what_is_no_segment_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(ValueError, match="is no WAL segment"):
        facts.segment(name)


@pytest.mark.parametrize(("rows", "there"), [
    ([stretch(1, 1, 9)], True), ([stretch(1, 6, 9)], False), ([], False),
    ([stretch(1, 1, 6), stretch(1, 8, 9)], False),
    ([stretch(1, 1, 6), stretch(2, 7, 9)], True),
    ([stretch(1, 1, 6), stretch(2, 5, 9)], True),
    ([stretch(1, 1, 6), stretch(2, 8, 9)], False),
])
def test_recovery_gets_on_without_a_hole_alone(rows: list[Json], there: bool) -> None:
    assert facts.leads_to_the_end(backup("full", 0), rows) is there


@pytest.mark.parametrize(("now", "hour", "due"), [
    (NOW, 2, TWO), (NOW, 4, TWO + 2 * 3600 - DAY), (TWO, 2, TWO), (TWO - 1, 2, TWO - DAY),
])
def test_a_night_begins_at_its_hour(now: float, hour: int, due: float) -> None:
    assert turns.due_since(now, hour) == due


def asked(*backups: Json, standby: bool = False, rows: list[Json] | None = None) -> str:
    done = turns.turn(
        standby=standby, backups=backups, stretches=rows or [stretch(1, 1, 9)], now=NOW, hour=2,
        full_days=7,
    )
    assert done.why
    return str(done.type)


def test_a_standby_has_no_turn() -> None:
    assert asked(standby=True) == ""


def test_the_first_is_a_full_one() -> None:
    assert asked() == "full"
    assert asked(backup("diff", NOW - 60)) == "full"


def test_one_a_night() -> None:
    assert asked(backup("full", TWO + 60)) == ""
    assert asked(backup("full", TWO - 60)) == "diff"


def test_a_full_one_every_seventh_night() -> None:
    taken = TWO + 900
    assert asked(backup("full", taken - 6 * DAY), backup("diff", taken - DAY)) == "diff"
    assert asked(backup("full", taken - 7 * DAY), backup("diff", taken - DAY)) == "full"


def test_wal_that_was_given_up_asks_for_a_backup_at_once() -> None:
    rows = [stretch(1, 1, 6), stretch(1, 8, 9)]
    assert asked(backup("full", TWO + 60), rows=rows) == "diff"
    assert asked(backup("full", TWO + 60, last=8), rows=rows) == ""
