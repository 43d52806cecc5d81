"""The backup of an upgrade against a real PostgreSQL: taken, proven, marked, restored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres, synapse_tables


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Poll until ``ready`` is true, or fail with what was waited for."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        value = ready()
        if value:
            return value
        pause.wait(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def rows(site: dict[str, Any], query: str, database: str = "synapse") -> str:
    return postgres.psql(site["at"], query, database)


def events(site: dict[str, Any]) -> int:
    return int(rows(site, "SELECT count(*) FROM events;"))


def nothing_left(site: dict[str, Any]) -> None:
    """No scratch server, file or socket of a finished or failed run."""
    assert not os.path.exists(f"{site['folder']}/scratch")
    assert not os.path.exists(f"{site['folder']}/scratch.json")
    found = subprocess.run(
        ["pgrep", "-f", f"{site['folder']}/scratch"], capture_output=True, text=True
    )
    assert found.stdout == ""


def test_problems_are_named_all_at_once_and_nothing_is_begun(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgcluster.free_bytes"] = lambda path: 1 << 20
    with pytest.raises(CommandExecutionError) as refused:
        salt["pgbackup.base"](site["folder"], "synaps", site["at"])
    said = str(refused.value)
    assert "no database 'synaps'" in said
    assert "1 MiB free" in said
    assert not os.path.exists(site["folder"])
    assert not salt["pgreceiver.state"]("saltworks", site["at"])["exists"]


def test_a_folder_that_the_server_cannot_enter_is_refused(
    site: dict[str, Any], salt: dict[str, Any], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(CommandExecutionError, match="shuts it out"):
        salt["pgbackup.base"](f"{closed}/backup", "synapse", site["at"])


def test_base_is_taken_once_and_stands(site: dict[str, Any], salt: dict[str, Any]) -> None:
    first = salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    assert first["changed"]
    assert first["schema"]["version"] == 61
    assert Path(f"{site['folder']}/base/backup_manifest").exists()
    assert salt["pgreceiver.state"]("saltworks", site["at"])["active"]
    second = salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    assert not second["changed"]
    assert second["when"] == first["when"]
    os.unlink(f"{site['folder']}/manifest.json")
    assert salt["pgbackup.base"](site["folder"], "synapse", site["at"])["changed"]


def test_a_receiver_that_died_is_started_again_and_a_lost_slot_means_a_new_base(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    pid = json.loads(Path(f"{site['folder']}/receiver.pid").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: not salt["pgreceiver.state"]("saltworks", site["at"])["active"],
        "the slot's release",
    )
    again = salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    assert not again["changed"]
    assert again["receiver_started"]
    salt["pgreceiver.stop"](site["folder"], "saltworks", site["at"])
    assert salt["pgbackup.base"](site["folder"], "synapse", site["at"])["changed"]


def test_the_backup_is_proven_while_people_write(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    stop = threading.Event()

    def chat() -> None:
        number = 1000
        while not stop.is_set():
            number += 1
            rows(site, synapse_tables.event(number))

    writer = threading.Thread(target=chat)
    writer.start()
    try:
        proof = salt["pgbackup.prove"](site["folder"], site["at"])
    finally:
        stop.set()
        writer.join()
    assert proof["compared"] >= 12
    assert proof["amcheck"]["done"]
    nothing_left(site)


def test_a_backup_that_cannot_be_restored_is_not_proven(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    rows(site, "SELECT pg_switch_wal();")
    rows(site, synapse_tables.event(100))
    whole = wait_for(
        lambda: [p for p in Path(f"{site['folder']}/wal").iterdir() if p.suffix != ".partial"],
        "a whole segment",
    )
    for path in whole:
        path.unlink()
    with pytest.raises(CommandExecutionError, match="cannot be restored"):
        salt["pgbackup.prove"](site["folder"], site["at"])
    assert not os.path.exists(f"{site['folder']}/proof.json")
    nothing_left(site)


def test_a_copy_with_other_content_is_not_proven(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    honest = salt["synapse_fingerprint.take"]

    def tampering(connection: dict[str, Any], **more: Any) -> Any:
        if connection["params"]["host"] != site["at"]["socket"]:
            salt["pgcluster.sql"](
                connection, "UPDATE users SET password_hash = 'old' WHERE name LIKE '@anna%';"
            )
        return honest(connection, **more)

    salt["synapse_fingerprint.take"] = tampering
    with pytest.raises(CommandExecutionError, match="digest:users"):
        salt["pgbackup.prove"](site["folder"], site["at"])
    nothing_left(site)


def test_a_damaged_table_is_found_before_the_upgrade(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    at = site["at"]
    path = Path(at["data"], rows(site, "SELECT pg_relation_filepath('local_media_repository');"))
    server = (f"{at['bindir']}/pg_ctl", "-D", at["data"], "-w", "-l", f"{at['socket']}/log")
    postgres.as_user(at, *server, "stop")
    with path.open("r+b") as file:
        # A line pointer, right after the page's header of 24 bytes, to a crooked place.
        file.seek(24)
        file.write(b"\x5a\xa5\x5a\xa5")
    postgres.as_user(at, *server, "start")
    salt["synapse_fingerprint.measures"].__globals__["DIGESTED"].clear()
    salt["pgbackup.base"](site["folder"], "synapse", at)
    with pytest.raises(CommandExecutionError, match="local_media_repository"):
        salt["pgbackup.prove"](site["folder"], at)
    nothing_left(site)


def test_the_migration_is_rehearsed_on_the_copy_alone(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    rehearse = {"config": site["config"], "release": site["release"]}
    proof = salt["pgbackup.prove"](site["folder"], site["at"], rehearse)
    assert proof["rehearsal"]["schema"]["version"] == 94
    assert proof["rehearsal"]["seconds"] > 0
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    Path(site["release"], "broken").touch()
    with pytest.raises(CommandExecutionError, match="back-to-back"):
        salt["pgbackup.prove"](site["folder"], site["at"], rehearse)
    nothing_left(site)


def test_no_mark_while_synapse_is_connected(site: dict[str, Any], salt: dict[str, Any]) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    at = site["at"]
    session = subprocess.Popen(
        [f"{at['bindir']}/psql", *f"-X -q -h 127.0.0.1 -p {at['port']} -U synapse_user".split()],
        stdin=subprocess.PIPE,
        env={**os.environ, "PGPASSWORD": postgres.PASSWORD, "PGDATABASE": "synapse"},
    )
    try:
        wait_for(
            lambda: rows(site, "SELECT 1 FROM pg_stat_activity WHERE usename = 'synapse_user'"),
            "the session",
        )
        with pytest.raises(CommandExecutionError, match="synapse_user from 127"):
            salt["pgbackup.mark"]("m1", site["folder"], at, timeout=0.5)
        assert salt["pgbackup.mark"]("m0", site["folder"], at, quiet="reader")["changed"]
    finally:
        session.kill()
        session.wait()
    assert salt["pgbackup.mark"]("m1", site["folder"], at)["changed"]


def test_a_mark_whose_wal_does_not_arrive_is_an_error(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    salt["pgbackup.base"](site["folder"], "synapse", site["at"])
    pid = json.loads(Path(f"{site['folder']}/receiver.pid").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(CommandExecutionError, match="pg_receivewal"):
            salt["pgbackup.mark"]("m1", site["folder"], site["at"], timeout=1)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not os.path.exists(f"{site['folder']}/marks/m1.json")


def test_rollback_brings_back_synapse_and_touches_nothing_else(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    at, folder = site["at"], site["folder"]
    salt["pgbackup.base"](folder, "synapse", at)
    rows(site, synapse_tables.event(50))
    mark = salt["pgbackup.mark"]("m1", folder, at)
    rows(site, "INSERT INTO notes VALUES (1);", "other")
    done = salt["synapse_db.migrate"](site["config"], site["release"])
    assert done["changed"]
    assert done["after"]["version"] == 94
    assert not salt["synapse_db.migrate"](site["config"], site["release"])["changed"]
    migrated = salt["synapse_db.fingerprint"](site["config"], only=list(mark["fingerprint"]))
    differences = salt["synapse_fingerprint.differences"]
    assert differences(mark["fingerprint"], migrated, migrated=True) == []
    assert differences(mark["fingerprint"], migrated) != []
    rows(site, synapse_tables.event(51))

    assert not salt["pgbackup.base"](folder, "synapse", at)["changed"]
    assert salt["pgbackup.mark"]("m1", folder, at)["point"] == mark["point"]

    back = salt["pgbackup.restore"]("m1", folder, at)
    assert back["changed"]
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    assert events(site) == 21
    assert rows(site, "SELECT count(*) FROM notes;", "other") == "1"
    shape = (
        "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, "
        "has_database_privilege('reader', oid, 'CONNECT') "
        "FROM pg_database WHERE datname = 'synapse';"
    )
    assert rows(site, shape) == "synapse_user|UTF8|C|t"
    assert rows(site, "SHOW work_mem;") == "7MB"
    assert (
        rows(site, "SELECT tableowner FROM pg_tables WHERE tablename = 'users'") == "synapse_user"
    )
    assert rows(site, "SELECT has_table_privilege('reader', 'users', 'SELECT')") == "t"
    assert salt["pgrestore.failed"](at) == [back["failed"]]

    rows(site, synapse_tables.event(60))
    assert not salt["pgbackup.restore"]("m1", folder, at)["changed"]
    assert events(site) == 22

    assert salt["pgbackup.mark"]("m1", folder, at)["changed"]
    salt["synapse_db.migrate"](site["config"], site["release"])
    assert salt["pgbackup.restore"]("m1", folder, at)["changed"]
    assert events(site) == 22
    assert salt["pgrestore.forget"](at) != []
    assert salt["pgrestore.failed"](at) == []
    nothing_left(site)


@pytest.mark.parametrize("step", ["pg_dump", "pg_restore", "_swap", "_finish"])
def test_a_rollback_that_stopped_anywhere_is_finished_by_the_next(
    site: dict[str, Any], salt: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, folder = site["at"], site["folder"]
    salt["pgbackup.base"](folder, "synapse", at)
    salt["pgbackup.mark"]("m1", folder, at)
    salt["synapse_db.migrate"](site["config"], site["release"])

    class Stopped(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        inside = salt["pgrestore.database"].__globals__
        if step in inside:
            patch.setitem(inside, step, stop)
        else:
            run = salt["pgcluster.run"]
            patch.setitem(
                salt,
                "pgcluster.run",
                lambda argv, **more: stop() if argv[0].endswith(step) else run(argv, **more),
            )
        with pytest.raises(Stopped):
            salt["pgbackup.restore"]("m1", folder, at)
    salt["pgbackup.restore"]("m1", folder, at)
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    assert events(site) == 20
    assert len(salt["pgrestore.failed"](at)) == 1
    left = rows(site, "SELECT count(*) FROM pg_database WHERE datname LIKE '%restored%'")
    assert left == "0"
    nothing_left(site)


KILLED = """
import json, sys
sys.path.insert(0, {root!r})
from tests.process import postgres
postgres.loaded()["pgbackup.restore"]("m1", {folder!r}, json.loads({at!r}))
"""


def test_a_rollback_killed_by_force_is_finished_by_the_next(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    at, folder = site["at"], site["folder"]
    salt["pgbackup.base"](folder, "synapse", at)
    salt["pgbackup.mark"]("m1", folder, at)
    salt["synapse_db.migrate"](site["config"], site["release"])
    root = str(Path(__file__).parents[2])
    script = KILLED.format(root=root, folder=folder, at=json.dumps(at))
    process = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: os.path.exists(f"{folder}/scratch/data/postmaster.pid"), "the scratch server")
    process.kill()
    process.wait()
    assert salt["pgbackup.restore"]("m1", folder, at)["changed"]
    assert salt["synapse_db.schema"](site["config"])["version"] == 61
    nothing_left(site)


def test_released_backups_keep_their_marks(site: dict[str, Any], salt: dict[str, Any]) -> None:
    at, folder = site["at"], site["folder"]
    salt["pgbackup.base"](folder, "synapse", at)
    salt["pgbackup.mark"]("m1", folder, at)
    salt["synapse_db.migrate"](site["config"], site["release"])
    assert salt["pgbackup.release"](folder, at, keep=True) == {"changed": True, "kept": True}
    assert not salt["pgbackup.release"](folder, at, keep=True)["changed"]
    assert not salt["pgreceiver.state"]("saltworks", at)["exists"]
    assert salt["pgbackup.restore"]("m1", folder, at)["changed"]
    assert events(site) == 20
    salt["pgbackup.release"](folder, at, keep=False)
    assert not os.path.exists(folder)


def test_old_background_updates_stop_the_migration(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    rows(site, "INSERT INTO background_updates VALUES ('slow_index', '{}');")
    with pytest.raises(CommandExecutionError, match="slow_index"):
        salt["synapse_db.migrate"](site["config"], site["release"])
    rows(site, "DELETE FROM background_updates;")
    done = salt["synapse_db.migrate"](site["config"], site["release"], online=True)
    assert done["after"]["pending"] == ["later"]


def test_facts_are_those_of_synapse_own_role(site: dict[str, Any], salt: dict[str, Any]) -> None:
    rows(site, "CREATE TABLE stray (n integer);")
    facts = salt["synapse_db.facts"](site["config"])
    assert facts["engine"] == "postgresql"
    assert facts["server_version"] >= 140000
    assert (facts["encoding"], facts["collate"], facts["ctype"]) == ("UTF8", "C", "C")
    assert facts["role"]["name"] == "synapse_user"
    assert facts["role"]["may_create"]
    # A cluster made by initdb serves no TLS.
    assert (facts["ssl_on"], facts["ssl"]) == (False, False)
    assert facts["foreign_tables"] == ["stray"]
    assert facts["schema"] == {"version": 61, "compat": 59, "deltas": 1, "pending": []}


def test_a_password_is_in_no_argument_and_in_no_file_that_others_read(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    connection = salt["synapse_db.connection"](site["config"])
    with salt["pgcluster.service"](connection) as environment:
        path = environment["PGSERVICEFILE"]
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert postgres.PASSWORD not in " ".join(environment.values())
    assert not os.path.exists(path)
    connection["params"]["password"] = "wrong-secret"
    with pytest.raises(CommandExecutionError) as refused:
        salt["pgcluster.sql"](connection, "SELECT 1;")
    assert "wrong-secret" not in str(refused.value)


def test_what_a_reboot_left_is_swept_without_stopping_another_server(
    site: dict[str, Any], salt: dict[str, Any]
) -> None:
    at, folder = site["at"], site["folder"]
    salt["pgbackup.base"](folder, "synapse", at)
    Path(f"{folder}/scratch/data").mkdir(parents=True)
    alien = Path(at["data"], "postmaster.pid").read_text()
    Path(f"{folder}/scratch/data/postmaster.pid").write_text(alien)
    assert salt["pgscratch.sweep"](folder, at)
    assert rows(site, "SELECT 1;") == "1"
    nothing_left(site)
