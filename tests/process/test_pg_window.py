"""The window of an upgrade on a real PostgreSQL: what is refused, rehearsed, compared."""

from __future__ import annotations

import os
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres, synapse_tables

FINGERPRINT: Any = postgres.load(postgres.MODULES / "synapse_fingerprint.py")


def execute(site: dict[str, Any], script: str) -> str:
    return postgres.psql(site["at"], script, "synapse")


def test_the_rehearsal_is_not_told_apart_by_what_people_wrote_meanwhile(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    """Events after the last that is compared, and before the point, are in the copy too."""
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    honest, number = salt["pgcluster.stamp"], iter(range(100, 1000))

    def chatting() -> Any:
        # Asked for between the fingerprint and the point, each time that this is tried.
        execute(site, synapse_tables.event(next(number)))
        return honest()

    salt["pgcluster.stamp"] = chatting
    rehearse = {"config": site["config"], "release": site["release"]}
    proof = salt["pgbackup.prove"](site["folder"], site["at"], rehearse)
    assert proof["rehearsal"]["schema"]["version"] == 94
    assert next(number) > 100


def test_no_mark_while_the_old_release_has_updates_to_finish(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    execute(site, "INSERT INTO background_updates VALUES ('slow_index', '{}');")
    with pytest.raises(CommandExecutionError, match=r"1 background .*slow_index.* finish them"):
        salt["pgbackup.mark"]("m1", site["folder"], site["at"])
    assert not os.path.exists(f"{site['folder']}/marks/m1.json")
    execute(site, "DELETE FROM background_updates;")
    assert salt["pgbackup.mark"]("m1", site["folder"], site["at"])["changed"]


def test_what_was_lost_since_the_mark_is_said_and_what_the_migration_deletes_is_not(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    asked = (site["config"], site["folder"], "m1")
    with pytest.raises(CommandExecutionError, match="no mark 'm1'"):
        salt["synapse_upgrade.lost"](*asked)
    salt["pgbackup.mark"]("m1", site["folder"], site["at"])
    salt["synapse_db.migrate"](site["config"], site["release"])
    assert salt["synapse_upgrade.lost"](*asked) == []
    execute(site, "DELETE FROM event_json WHERE event_id = '$e3';")
    assert "count of event_json: was 20, is 19" in salt["synapse_upgrade.lost"](*asked)


def test_the_way_follows_the_rehearsal(site: dict[str, Any], salt: dict[str, Any]) -> None:
    asked = (site["config"], site["folder"], "m1", None)
    assert salt["synapse_upgrade.way"](*asked)["way"] == "needs-choice"
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    rehearse = {"config": site["config"], "release": site["release"]}
    salt["pgbackup.prove"](site["folder"], site["at"], rehearse)
    assert salt["synapse_upgrade.way"](*asked)["way"] == "offline"


def test_receipts_are_counted_from_the_first_on(site: dict[str, Any], salt: dict[str, Any]) -> None:
    table = "event_push_summary_last_receipt_stream_id"
    where = salt["synapse_upgrade.receipts_counted_from"]
    assert where(site["config"]) is None
    execute(site, f"SET ROLE synapse_user; CREATE TABLE {table} (stream_id bigint);")
    assert where(site["config"]) is None
    execute(site, f"INSERT INTO {table} VALUES (700);")
    assert where(site["config"]) == 700
    salt["synapse_upgrade.count_all_receipts"](site["config"])
    assert where(site["config"]) == 0


def read(site: dict[str, Any], table: str) -> tuple[int, int]:
    """How often a table was read from end to end, and how many of its rows by an index."""
    where = f"FROM pg_stat_user_tables WHERE relname = '{table}'"
    columns = "seq_scan || ' ' || coalesce(idx_tup_fetch, 0)"
    scans, rows = execute(site, f"SELECT {columns} {where};").split()
    return int(scans), int(rows)


def test_what_the_window_reads_does_not_grow_with_the_data(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    """Beyond its limit a table is not counted, and of its end as much is read as before."""
    execute(site, synapse_tables.many_events(21, 5_000))
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    small = salt["pgbackup.mark"]("m1", site["folder"], site["at"])["fingerprint"]
    assert (small["count:event_json"], small["count:events"]) == (5_000, 5_000)

    execute(site, synapse_tables.many_events(5_001, 90_000))
    sizes = salt["synapse_fingerprint.tables"](
        salt["pgcluster.connection"](salt["pgcluster.locate"](site["at"]), "synapse")
    )
    assert sizes["event_json"] > FINGERPRINT.COUNT_BYTES > sizes["events"]
    before = read(site, "event_json")
    big = salt["pgbackup.mark"]("m1", site["folder"], site["at"])["fingerprint"]
    after = read(site, "event_json")
    assert set(small) - set(big) == {"count:event_json"}
    assert (big["max:events"], big["count:events"]) == (90_000, 90_000)
    assert big["tail:event_json"] != small["tail:event_json"]
    assert after[0] == before[0]
    assert after[1] - before[1] <= 2 * FINGERPRINT.TAIL

