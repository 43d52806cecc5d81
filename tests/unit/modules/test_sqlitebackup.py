"""Copies of a SQLite database: taken, proven, put back."""

from __future__ import annotations

import os
import sqlite3
import threading
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
def site(tmp_path: Path) -> dict[str, str]:
    source = tmp_path / "homeserver.db"
    events = "".join(synapse_tables.event(n) for n in range(1, 21))
    execute(str(source), synapse_tables.TABLES + events)
    config = tmp_path / "homeserver.yaml"
    database = {"name": "sqlite3", "args": {"database": str(source)}}
    config.write_text(yaml.safe_dump({"server_name": "x", "database": database}))
    return {
        "source": str(source),
        "config": str(config),
        "folder": str(tmp_path / "backup"),
        "release": synapse_tables.release(tmp_path / "release"),
    }


def execute(path: str, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def events(path: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM events").fetchone()[0])


def test_a_copy_is_checked_and_taken_anew_until_the_schema_moves(
    site: dict[str, str], salt: dict[str, Any]
) -> None:
    take = salt["sqlitebackup.take"]
    first = take(site["source"], site["folder"], "m1")
    assert first["changed"]
    assert os.stat(f"{site['folder']}/m1.db").st_mode & 0o777 == 0o600
    execute(site["source"], synapse_tables.event(30))
    assert take(site["source"], site["folder"], "m1")["fingerprint"]["count:events"] == 21
    salt["synapse_db.migrate"](site["config"], site["release"])
    assert not take(site["source"], site["folder"], "m1")["changed"]
    assert events(f"{site['folder']}/m1.db") == 21


def test_a_copy_is_taken_while_synapse_writes(site: dict[str, str], salt: dict[str, Any]) -> None:
    stop = threading.Event()
    started = threading.Event()

    def chat() -> None:
        number = 100
        while not stop.is_set():
            number += 1
            execute(site["source"], synapse_tables.event(number))
            started.set()
            stop.wait(0.02)

    writer = threading.Thread(target=chat)
    writer.start()
    try:
        assert started.wait(10)
        copy = salt["sqlitebackup.take"](site["source"], site["folder"], "m1", live=True)
    finally:
        stop.set()
        writer.join()
    assert copy["fingerprint"]["count:events"] >= 21


def test_no_copy_to_come_back_to_while_the_old_release_has_updates_to_finish(
    site: dict[str, str], salt: dict[str, Any]
) -> None:
    execute(site["source"], "INSERT INTO background_updates VALUES ('slow_index', '{}')")
    with pytest.raises(CommandExecutionError, match=r"1 background .*slow_index.* finish them"):
        salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    assert not os.path.exists(f"{site['folder']}/m1.json")
    # For practice, with Synapse running, it may wait: the rehearsal finishes them.
    assert salt["sqlitebackup.take"](site["source"], site["folder"], "live", live=True)["changed"]


def test_a_writer_in_the_window_is_noticed(site: dict[str, str], salt: dict[str, Any]) -> None:
    inside = salt["sqlitebackup.take"].__globals__
    honest = inside["_copy"]

    def late(source: str, *more: Any) -> None:
        honest(source, *more)
        execute(source, synapse_tables.event(99))

    inside["_copy"] = late
    with pytest.raises(CommandExecutionError, match="stop Synapse first"):
        salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    assert not os.path.exists(f"{site['folder']}/m1.json")


def test_a_damaged_source_is_refused(site: dict[str, str], salt: dict[str, Any]) -> None:
    Path(site["source"]).write_bytes(b"no database at all" * 100)
    with pytest.raises(CommandExecutionError, match="cannot be read as SQLite"):
        salt["sqlitebackup.take"](site["source"], site["folder"], "m1")


def test_a_full_disk_is_refused(site: dict[str, str], salt: dict[str, Any]) -> None:
    salt["pgcluster.free_bytes"] = lambda path: 1 << 20
    with pytest.raises(CommandExecutionError, match="1 MiB free"):
        salt["sqlitebackup.take"](site["source"], site["folder"], "m1")


def test_a_copy_is_proven_and_the_migration_rehearsed(
    site: dict[str, str], salt: dict[str, Any]
) -> None:
    salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    rehearse = {"config": site["config"], "release": site["release"]}
    proof = salt["sqlitebackup.prove"](site["folder"], "m1", rehearse)
    assert proof["rehearsal"]["schema"]["version"] == 94
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    assert not os.path.exists(f"{site['folder']}/scratch")
    execute(f"{site['folder']}/m1.db", "UPDATE users SET password_hash = 'old'")
    with pytest.raises(CommandExecutionError, match="digest of users"):
        salt["sqlitebackup.prove"](site["folder"], "m1")
    assert not os.path.exists(f"{site['folder']}/scratch")


def test_rollback_keeps_the_failed_file_and_leaves_no_stale_journal(
    site: dict[str, str], salt: dict[str, Any]
) -> None:
    os.chmod(site["source"], 0o640)
    salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    assert not salt["sqlitebackup.moved_on"]("m1", site["folder"])
    salt["synapse_db.migrate"](site["config"], site["release"])
    assert salt["sqlitebackup.moved_on"]("m1", site["folder"])
    execute(site["source"], synapse_tables.event(40))
    Path(site["source"] + "-journal").write_bytes(b"")
    done = salt["sqlitebackup.restore"]("m1", site["folder"])
    assert done["changed"]
    assert events(site["source"]) == 20
    assert events(done["failed"]) == 21
    assert not os.path.exists(site["source"] + "-journal")
    assert os.stat(site["source"]).st_mode & 0o777 == 0o640
    execute(site["source"], synapse_tables.event(41))
    assert not salt["sqlitebackup.restore"]("m1", site["folder"])["changed"]
    assert events(site["source"]) == 21


@pytest.mark.parametrize("step", ["_copy", "_swap", "_settled"])
def test_a_rollback_that_stopped_anywhere_is_finished_by_the_next(
    site: dict[str, str], salt: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    salt["synapse_db.migrate"](site["config"], site["release"])

    class Stopped(Exception):
        pass

    def stop(*args: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setitem(salt["sqlitebackup.restore"].__globals__, step, stop)
        with pytest.raises(Stopped):
            salt["sqlitebackup.restore"]("m1", site["folder"])
    done = salt["sqlitebackup.restore"]("m1", site["folder"])
    assert done["changed"]
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    assert (
        salt["synapse_db.schema"](connection={"engine": "sqlite3", "path": done["failed"]})[
            "version"
        ]
        == 94
    )
    aside = [p for p in Path(site["source"]).parent.iterdir() if ".failed_" in p.name]
    assert len(aside) == 1


def test_an_update_that_gives_up_is_stopped(site: dict[str, str], salt: dict[str, Any]) -> None:
    Path(site["release"], "broken").touch()
    with pytest.raises(CommandExecutionError, match="back-to-back"):
        salt["synapse_db.migrate"](site["config"], site["release"])


def test_released_copies_are_kept_or_deleted(site: dict[str, str], salt: dict[str, Any]) -> None:
    salt["sqlitebackup.take"](site["source"], site["folder"], "m1")
    assert salt["sqlitebackup.release"](site["folder"]) == {"changed": False, "kept": True}
    assert salt["sqlitebackup.release"](site["folder"], keep=False)["changed"]
    assert not os.path.exists(site["folder"])
