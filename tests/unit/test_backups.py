"""Which backups count, which times are covered, where a restore begins, what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import backup_report, backups
from saltworks.errors import Refused

Json = dict[str, Any]
#: 2026-11-28 00:00 UTC; times below are seconds from then.
BEGIN = 1795824000


def iso(seconds: float) -> str:
    return f"2026-11-28T00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d}+00:00"


def backup(stop: int, last: int, timeline: int = 1, **more: Any) -> Json:
    return {
        "label": f"b{stop}", "type": "full", "start": BEGIN + stop - 5, "stop": BEGIN + stop,
        "timeline": timeline, "first": last, "last": last, "bytes": 1 << 30, "stored": 1 << 20,
        "damaged": False, **more,
    }  # fmt: skip


def stretch(timeline: int, first: int, last: int, since: int, until: int) -> Json:
    return {
        "timeline": timeline, "first": first, "last": last,
        "since": BEGIN + since, "until": BEGIN + until,
    }  # fmt: skip


def at(seconds: int, rows: list[Json], wal: list[Json], live: bool = False) -> str:
    found = backups.source(iso(seconds), rows, wal, BEGIN + 3000, live)
    return f"{found.label} {found.timeline}"


def test_a_restore_begins_with_the_last_backup_before_its_time() -> None:
    rows, wal = [backup(100, 3), backup(200, 6)], [stretch(1, 1, 9, 0, 300)]
    assert at(150, rows, wal) == "b100 1"
    assert at(250, rows, wal) == "b200 1"
    for seconds in (99, 301):
        with pytest.raises(Refused, match="covered is 2026-11-28 00:01:40 UTC to 2026-11-28 00:05"):
            at(seconds, rows, wal)
    with pytest.raises(Refused, match="is to come: it is 2026-11-28 00:50:00 UTC"):
        at(3001, rows, wal, live=True)
    # The primary has what is missing.
    assert at(301, rows, wal, live=True) == "b200 1"


def test_no_restore_goes_over_a_hole_in_the_wal() -> None:
    rows = [backup(100, 3), backup(400, 13)]
    wal = [stretch(1, 1, 9, 0, 300), stretch(1, 12, 20, 350, 500)]
    assert [str(span) for span in backups.spans(rows, wal)] == [
        "2026-11-28 00:01:40 UTC to 2026-11-28 00:05:00 UTC",
        "2026-11-28 00:06:40 UTC to 2026-11-28 00:08:20 UTC",
    ]
    for live in (False, True):
        with pytest.raises(Refused, match="is not covered"):
            at(360, rows, wal, live)
    assert at(450, rows, wal) == "b400 1"
    assert backups.spans([backup(100, 10)], wal) == []


def test_a_failover_s_timeline_is_followed_for_times_before_it() -> None:
    rows = [backup(100, 3)]
    wal = [stretch(1, 1, 9, 0, 300), stretch(2, 10, 20, 310, 600)]
    assert at(200, rows, wal) == "b100 2"
    assert at(500, rows, wal) == "b100 2"


def test_what_a_restore_put_aside_is_found_on_its_own_timeline() -> None:
    """At 00:06:40 put back to 00:03:20: between the two only timeline 1 tells what was."""
    rows = [backup(100, 3), backup(390, 12), backup(500, 9, timeline=2)]
    wal = [stretch(1, 1, 13, 0, 400), stretch(2, 7, 20, 400, 900)]
    assert at(350, rows, wal) == "b100 1"
    assert at(395, rows, wal) == "b390 1"
    assert at(450, rows, wal) == "b100 2", "b390 is of what was put aside"
    assert at(600, rows, wal) == "b500 2"


def test_and_after_a_second_one() -> None:
    rows = [backup(100, 3)]
    wal = [
        stretch(1, 1, 13, 0, 400), stretch(2, 7, 20, 400, 900), stretch(3, 7, 9, 900, 1200),
    ]  # fmt: skip
    assert [at(s, rows, wal) for s in (350, 600, 1000)] == ["b100 1", "b100 2", "b100 3"]


def test_of_a_lost_server_all_there_is_is_restored() -> None:
    rows, wal = [backup(100, 3), backup(200, 6)], [stretch(1, 1, 9, 0, 300)]
    assert backups.source("latest", rows, wal, BEGIN, live=False) == backups.Source(
        "b200", 1, 1 << 30
    )
    wal += [stretch(2, 5, 7, 310, 400)]
    assert backups.source("latest", rows, wal, BEGIN, live=False).label == "b100"
    with pytest.raises(Refused, match="the server runs"):
        backups.source("latest", rows, wal, BEGIN, live=True)
    with pytest.raises(Refused, match="there is no backup"):
        backups.source("latest", [], [], BEGIN, live=False)


@pytest.mark.parametrize("target", ["", "soon", "2026-11-28", "2026-11-28T01:00", None])
def test_a_time_without_a_zone_is_none(target: Any) -> None:
    with pytest.raises(Refused, match="write one such as"):
        backups.moment(str(target))


def test_zones_are_told_apart() -> None:
    assert backups.moment("2026-11-28T02:00:00+02:00").timestamp() == BEGIN
    assert backups.moment("2026-11-28T00:00:00Z").timestamp() == BEGIN


def report(**changes: Any) -> Json:
    server = {
        "standby": False, "timeline": 1, "position": "0/A000100", "archive_mode": "on",
        "archive_command": "pgbackrest archive-push %p", "waiting": 0,
        "archiver": {
            "last_archived_wal": "000000010000000000000009", "failed_count": 2,
            "last_archived_time": "2026-11-28T00:05:00+00:00",
            "last_failed_wal": "000000010000000000000008",
            "last_failed_time": "2026-11-28T00:04:00+00:00",
        },
    }  # fmt: skip
    store = {
        "backups": [backup(200, 6)], "stretches": [stretch(1, 1, 9, 0, 300)], "encrypted": True,
        "busy": False,
    }  # fmt: skip
    return {
        "server": changes.get("server") or {**server, **changes.get("s", {})},
        "store": changes.get("store") or {**store, **changes.get("r", {})},
        "keep_full": 2, "hour": 2, "full_days": 7,
    }  # fmt: skip


GOOD = {"b200": {"good": True, "at": BEGIN + 400, "machine": "database", "why": "restored"}}
BAD = {"b200": {**GOOD["b200"], "good": False, "why": "a checksum"}}


def wrong(said: Json, verdicts: Json = GOOD, now: int = 500) -> list[str]:
    return [str(row) for row in backup_report.problems(said, verdicts, BEGIN + now)]


def test_nothing_is_wrong_with_a_fresh_backup_that_was_restored() -> None:
    assert wrong(report()) == []


@pytest.mark.parametrize(("said", "verdicts", "now", "word"), [
    (report(), {}, 500, "none of them was restored"),
    (report(), BAD, 500, "is bad: a checksum"),
    (report(), GOOD, 500 + 27 * 3600, "the newest is of"),
    (report(), GOOD, 500 + 9 * 86400, "for more than a week"),
    (report(r={"backups": []}), GOOD, 500, "there is none -> salt-run backup.now full"),
    (report(r={"backups": [backup(200, 6, damaged=True)]}), GOOD, 500, "wrong checksums"),
    (report(r={"encrypted": False}), GOOD, 500, "is not encrypted"),
    (report(r={"stretches": [stretch(1, 1, 9, 0, 300), stretch(1, 11, 12, 310, 320)]}), GOOD, 500,
     "WAL is missing since b200"),
    (report(store={"error": "connection refused"}), GOOD, 500, "store: connection refused"),
    (report(server={"error": "no answer"}), GOOD, 500, "database: no answer"),
    (report(s={"archive_mode": "off"}), GOOD, 500, "archive_mode is off"),
    (report(s={"archive_command": "/bin/true"}), GOOD, 500, "nothing is archived"),
    (report(s={"waiting": 65}), GOOD, 500, "65 segments (1.0 GiB) wait"),
    (report(s={"archiver": {**report()["server"]["archiver"],
                            "last_failed_time": "2026-11-28T00:06:00+00:00"}}), GOOD, 500,
     "000000010000000000000008 could not be archived"),
])
def test_what_is_wrong_is_said(said: Json, verdicts: Json, now: int, word: str) -> None:
    assert any(word in line for line in wrong(said, verdicts, now)), wrong(said, verdicts, now)


def test_the_table_says_of_each_backup_when_it_was_restored() -> None:
    shown = backup_report.table(report(), GOOD, BEGIN + 500)
    (row,) = shown["backups"]
    assert row["restored"] == "2026-11-28 00:06:40 UTC on database: good"
    assert shown["archive"]["behind"] == "256 B"
    (row,) = backup_report.table(report(), {}, BEGIN + 500)["backups"]
    assert row["restored"] == "never restored: does not count"
    gone = backup_report.table(report(store={"error": "gone"}), GOOD, BEGIN + 500)
    assert "backups" not in gone
    assert gone["archive"]["behind"] == "unknown"


def test_only_one_that_was_restored_and_good_counts() -> None:
    rows = report()["store"]["backups"]
    assert [backups.counts(rows[0], row) for row in (GOOD, BAD, {})] == [True, False, False]
    assert backups.kept({**GOOD, "gone": {}}, rows) == GOOD


def test_the_pillar_says_all_and_what_the_map_states() -> None:
    given: Json = {
        "endpoint": "storage:9000", "bucket": "database", "region": "us-east-1",
        "uri_style": "path", "access_key": "a", "secret_key": "s", "authority": "PEM",
        "cipher_pass": "c", "database": "synapse",
    }  # fmt: skip
    row = backups.pgbackrest_pillar(**given, unit="patroni", stated={"keep_full": 4})
    assert (row["keep_full"], row["unit"]) == (4, "patroni")
    assert row["store"]["endpoint"] == "storage:9000"
    settings = backups.archive_settings("storage", 9000, row["stanza"])
    assert settings["archive_mode"] == "on"
    assert settings["archive_command"] == "pgbackrest --stanza=synapse archive-push %p"
    assert settings["restore_command"] == (
        'timeout 1 bash -c "</dev/tcp/storage/9000" && '
        'timeout 10 pgbackrest --stanza=synapse archive-get %f "%p"'
    )
