"""What the window of an upgrade asks, on a SQLite database of Synapse's shape."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from tests.process import postgres, synapse_tables


@pytest.fixture
def salt() -> dict[str, Any]:
    return postgres.loaded()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with ``homeserver.yaml`` and the database ``homeserver.db`` that it names."""
    events = "".join(synapse_tables.event(n) for n in range(1, 6))
    execute(tmp_path, synapse_tables.TABLES + events)
    database = {"name": "sqlite3", "args": {"database": str(tmp_path / "homeserver.db")}}
    (tmp_path / "homeserver.yaml").write_text(yaml.safe_dump({"database": database}))
    return tmp_path


def execute(site: Path, script: str) -> None:
    with closing(sqlite3.connect(site / "homeserver.db")) as db:
        db.executescript(script)


def config(site: Path) -> str:
    return str(site / "homeserver.yaml")


@pytest.mark.parametrize("schema", [None, {}, {"pending": []}])
def test_a_database_without_waiting_updates_may_move(
    salt: dict[str, Any], schema: dict[str, Any] | None
) -> None:
    salt["synapse_upgrade.refuse_pending"](schema)


def test_waiting_updates_are_named_and_counted(salt: dict[str, Any]) -> None:
    many = {"pending": [f"update_{n}" for n in range(7)]}
    with pytest.raises(CommandExecutionError) as refused:
        salt["synapse_upgrade.refuse_pending"](many)
    said = str(refused.value)
    assert said.startswith("7 background updates")
    assert "update_4" in said
    assert "update_5" not in said


@pytest.mark.parametrize(
    ("proof", "choice", "way"),
    [
        (None, None, "needs-choice"),
        ({"rehearsal": None}, None, "needs-choice"),
        ({"rehearsal": {"seconds": 59.0}}, None, "offline"),
        ({"rehearsal": {"seconds": 61.0}}, None, "needs-choice"),
        ({"rehearsal": {"seconds": 61.0}}, "online", "online"),
    ],
)
def test_the_way_follows_the_rehearsal_of_the_named_copy(
    site: Path, salt: dict[str, Any], proof: dict[str, Any] | None, choice: str | None, way: str
) -> None:
    # A proof of another copy says nothing about this one.
    (site / "other.proof.json").write_text(json.dumps({"rehearsal": {"seconds": 1.0}}))
    if proof is not None:
        (site / "live.proof.json").write_text(json.dumps(proof))
    plan = salt["synapse_upgrade.way"](config(site), str(site), "live", choice)
    assert plan["way"] == way


def test_what_was_lost_since_the_mark_is_said_and_what_the_migration_deletes_is_not(
    site: Path, salt: dict[str, Any]
) -> None:
    salt["sqlitebackup.take"](str(site / "homeserver.db"), str(site / "backup"), "m1")
    asked = (config(site), str(site / "backup"), "m1")
    execute(site, synapse_tables.UPGRADE)
    assert salt["synapse_upgrade.lost"](*asked) == []
    execute(site, "DELETE FROM event_json WHERE event_id = '$e3'")
    execute(site, "UPDATE users SET password_hash = 'old' WHERE name LIKE '@anna%'")
    said = "; ".join(salt["synapse_upgrade.lost"](*asked))
    for part in ("count of event_json: was 5, is 4", "digest of users", "tail of event_json"):
        assert part in said
    assert "account_data" not in said


def test_without_the_mark_nothing_can_be_called_kept(site: Path, salt: dict[str, Any]) -> None:
    with pytest.raises(CommandExecutionError, match="no mark 'm1'"):
        salt["synapse_upgrade.lost"](config(site), str(site / "backup"), "m1")


def test_receipts_are_counted_from_the_first_on(site: Path, salt: dict[str, Any]) -> None:
    where = salt["synapse_upgrade.receipts_counted_from"]
    assert where(config(site)) is None
    execute(site, "CREATE TABLE event_push_summary_last_receipt_stream_id (stream_id bigint)")
    assert where(config(site)) is None
    execute(site, "INSERT INTO event_push_summary_last_receipt_stream_id VALUES (700)")
    assert where(config(site)) == 700
    salt["synapse_upgrade.count_all_receipts"](config(site))
    assert where(config(site)) == 0
