"""Backups of a real PostgreSQL, by real pgBackRest, into a real store over TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from saltworks import backup_report, backups, pki
from saltworks.errors import Refused

from tests.process import backup_site
from tests.process.backup_site import Site
from tests.process.front_door import wait_for
from tests.render import trees
from tests.render.conftest import renderer

__all__ = ["renderer"]

pytestmark = pytest.mark.alone

WAITING = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready';"

SECRET = "nobody-may-read-this-in-the-store"


@pytest.fixture
def site(renderer: trees.Renderer) -> Iterator[Site]:
    """Known to a running store."""
    with backup_site.site(renderer) as here, here.store():
        here.call("pgbackrest.create")
        yield here


def test_nobody_reads_in_the_store(renderer: trees.Renderer) -> None:
    # Compressed it could not be read with a mere look.
    with backup_site.site(renderer, compress={"type": "none", "level": 0}) as site, site.store():
        site.call("pgbackrest.create")
        site.psql(f"INSERT INTO notes SELECT '{SECRET}' FROM generate_series(1, 2000);")
        site.call("pgbackrest.backup", "full")
        assert site.report()["store"]["encrypted"]
        assert backup_site.found(Path(site.at["data"]), SECRET)
        assert sum(row.stat().st_size for row in site.bucket.rglob("*")) > 20 << 20
        for word in (SECRET, "PG_VERSION"):
            assert not backup_site.found(site.bucket, word)


def test_a_backup_counts_once_it_was_restored(site: Site) -> None:
    site.note("one")
    done = site.call("pgbackrest.backup", "full")
    assert done["type"] == "full"
    said = site.report()
    assert any("does not count" in row["restored"]
               for row in backup_report.table(said, {}, time.time())["backups"])
    assert any("no backup that counts" in row.what
               for row in backup_report.problems(said, {}, time.time()))
    around = site.call("pgbackrest.mark")
    seen = site.call("pgbackrest.verify", done["taken"], done["bytes"], around=around)
    assert seen["good"], seen
    assert seen["compared"] >= 3
    assert seen["amcheck"]["done"]
    verdicts = {done["taken"]: {**seen, "at": time.time(), "machine": "database"}}
    assert backup_report.problems(site.report(), verdicts, time.time()) == []
    assert not os.path.exists(f"{site.top}/scratch/scratch")
    assert site.notes()


def test_a_flipped_byte_in_the_store_is_found(site: Site) -> None:
    site.psql(f"INSERT INTO notes SELECT '{SECRET}' || g FROM generate_series(1, 20000) g;")
    done = site.call("pgbackrest.backup", "full")
    objects = (site.bucket / "pgbackrest/backup/synapse" / done["taken"]).rglob("*")
    largest = max((row for row in objects if row.is_file() and "manifest" not in row.name),
                  key=lambda row: row.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    seen = site.call("pgbackrest.verify", done["taken"], done["bytes"])
    assert not seen["good"]
    assert "restore" in seen["why"]
    verdicts = {done["taken"]: {**seen, "at": time.time(), "machine": "database"}}
    assert not backups.counts(site.report()["store"]["backups"][0], verdicts)


@pytest.mark.soak
def test_what_does_not_fit_is_not_begun(site: Site) -> None:
    done = site.call("pgbackrest.backup", "full")
    with pytest.raises(CommandExecutionError, match=r"MiB free, .* needed.*Nothing was changed"):
        site.call("pgbackrest.verify", done["taken"], 1 << 60)
    assert not os.path.exists(f"{site.top}/scratch/scratch")


def test_restored_to_the_moment_asked_for(site: Site) -> None:
    site.psql("INSERT INTO e2e_one_time_keys_json VALUES (1), (2);")
    site.call("pgbackrest.backup", "full")
    site.note("before")
    target = site.note("last-before")
    site.note("after")
    done = site.restore(target)
    assert done["changed"]
    assert site.notes() == ["before", "last-before"]
    assert done["timeline"] == {"from": 1, "to": 2}
    assert done["one_time_keys"] == 2
    assert site.psql("SELECT count(*) FROM e2e_one_time_keys_json;") == "0"
    assert site.psql("SHOW recovery_target_time;") == ""
    assert done["reached"] <= target

    site.note("written-since")
    assert site.call("pgpitr.kept")["stands"]
    again = site.restore(target)
    assert not again["changed"]
    assert "written-since" in site.notes()

    # It was put back by other means, or a standby took over.
    site.service("stop")
    Path(site.at["data"], "standby.signal").touch()
    site.service("start")
    site.psql("SELECT pg_promote();")
    assert not site.call("pgpitr.kept")["stands"]
    assert site.restore(target)["changed"]
    assert site.notes() == ["before", "last-before"]


@pytest.mark.soak
def test_what_a_restore_put_aside_can_be_had_again(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    first = site.note("one")
    second = site.note("two")
    site.restore(first)
    assert site.notes() == ["one"]
    site.call("pgbackrest.backup", "diff")
    third = site.note("three")
    site.note("four")
    # On the timeline that was put aside, and not at the fork of the new one.
    site.restore(second)
    assert site.notes() == ["one", "two"]
    site.restore(third)
    assert site.notes() == ["one", "three"]
    assert len(site.call("pgpitr.kept")["folders"]) == 3
    assert len(site.call("pgpitr.forget")) == 3


@pytest.mark.soak
@pytest.mark.parametrize(("target", "what"), [
    ("yesterday", "is no time"), ("2026-11-28T01:30:00", "has no zone"),
    ("2199-01-01T00:00:00+00:00", "is to come"), ("2001-01-01T00:00:00Z", "is not covered; cov"),
])
def test_a_time_that_cannot_be_had_is_refused(site: Site, target: str, what: str) -> None:
    site.call("pgbackrest.backup", "full")
    with pytest.raises(Refused, match=what):
        site.source(target)


def test_a_restore_that_fails_leaves_what_was(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    found = site.source(target)
    (archived,) = site.bucket.glob("pgbackrest/archive/synapse/15-1/00000001*")
    site.psql("SELECT pg_current_xact_id(); SELECT pg_switch_wal();")
    backup = site.report()["store"]["backups"][0]
    wait_for("the WAL", lambda: site.report()["server"]["waiting"] == 0)
    # The WAL between backup and target has a hole.
    for row in archived.iterdir():
        if int(row.name[16:24], 16) > backup["last"]:
            row.unlink()
    with pytest.raises(CommandExecutionError, match="as it was before serves again"):
        site.call("pgpitr.restore", target, found.label, found.timeline, found.bytes)
    assert site.notes() == ["one", "two"]
    assert site.enabled
    assert "step" not in site.call("pgpitr.kept")
    (failed,) = site.call("pgpitr.kept")["folders"]
    assert ".failed-" in failed
    assert site.psql("SELECT timeline_id FROM pg_control_checkpoint();") == "1"


def test_without_the_store_the_server_serves_and_catches_up(renderer: trees.Renderer) -> None:
    with backup_site.site(renderer) as site:
        with site.store():
            site.call("pgbackrest.create")
            site.call("pgbackrest.backup", "full")
        for word in ("one", "two"):
            site.note(word)
            site.psql("SELECT pg_switch_wal();")
        wait_for("WAL that waits", lambda: int(site.psql(WAITING)) >= 2)
        said = site.report()
        assert "error" in said["store"]
        assert any(row.place == "store" for row in backup_report.problems(said, {}, time.time()))
        with pytest.raises(CommandExecutionError):
            site.call("pgbackrest.backup", "diff")
        assert site.notes() == ["one", "two"]
        with site.store():
            wait_for("the archive", lambda: site.psql(WAITING) == "0", 90)
            assert len(site.spans()) == 1
            target = site.note("three")
            site.note("four")
            site.restore(target)
            assert site.notes() == ["one", "three", "two"]


def test_a_store_that_is_away_or_mute_does_not_hold_up_who_recovers(
    renderer: trees.Renderer,
) -> None:
    """A standby that is promoted waits for its restore_command twice, or more."""
    with backup_site.site(renderer) as site:
        command = site.psql("SHOW restore_command;").replace("%f", "00000002.history")
        words = ["sh", "-c", command.replace("%p", f"{site.top}/got")]
        begun = time.monotonic()
        assert 0 < subprocess.run(words, check=False, timeout=60).returncode <= 125
        assert time.monotonic() - begun < 3
        with socket.create_server(("127.0.0.1", site.port)):
            begun = time.monotonic()
            assert 0 < subprocess.run(words, check=False, timeout=60).returncode <= 125
            assert time.monotonic() - begun < 3 + backups.FETCH_SECONDS


@pytest.mark.soak
def test_wal_that_was_given_up_is_seen_and_made_up_for(renderer: trees.Renderer) -> None:
    """Beyond the stated size the server goes on, and one span of time is lost."""
    with backup_site.site(renderer, queue_max="32MiB") as site:
        with site.store():
            site.call("pgbackrest.create")
            site.call("pgbackrest.backup", "full")
            before = site.note("one")
        for word in ("two", "three", "four", "five"):
            site.note(word)
            site.psql("SELECT pg_switch_wal();")
        wait_for("WAL to be given up", lambda: site.psql(WAITING) == "0", 120)
        lost = site.note("lost")
        with site.store():
            site.psql("SELECT pg_switch_wal();")
            wait_for("the archive", lambda: site.psql(WAITING) == "0", 60)
            assert any("no time after it is covered" in row.what
                       for row in backup_report.problems(site.report(), {}, time.time()))
            with pytest.raises(Refused, match="is not covered"):
                site.source(lost)
            # In any hour, although this night has its backup.
            done = site.nightly()
            assert done["type"] == "diff"
            assert "WAL is missing since" in done["why"]
            assert "this night" in site.nightly()["why"]
            assert len(site.spans()) == 2
            after = site.note("six")
            assert site.source(after).label == done["taken"]
            with pytest.raises(Refused, match="is not covered"):
                site.source(before)


@pytest.mark.soak
def test_nobody_loses_the_database_that_he_uses(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    found = site.source(target)
    with site.connected(), pytest.raises(CommandExecutionError, match="synapse is in use: this m"):
        site.call("pgpitr.restore", target, found.label, found.timeline, found.bytes)
    assert site.notes() == ["one"]


@pytest.mark.soak
def test_two_backups_at_once_are_one(site: Site) -> None:
    site.psql("CREATE TABLE much AS SELECT repeat(md5(g::text), 30) t "
              "FROM generate_series(1, 200000) g;")
    first = site.begin("full")
    wait_for("the first", lambda: bool(site.report()["store"]["busy"]), 30)
    with pytest.raises(CommandExecutionError, match="another run is at work here"):
        site.call("pgbackrest.backup", "full")
    assert first.wait(120) == 0
    assert len(site.report()["store"]["backups"]) == 1


def killed(site: Site, target: str, function: str) -> None:
    """A restore whose process dies where it would call a function; its copy runs on."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            # What it leaves goes with the site.
            tempfile.tempdir = str(site.top)
            site.salt[function] = lambda *args, **words: os._exit(9)
            site.restore(target)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    # What the child did with its service manager.
    site.enabled = site.active = False


@pytest.mark.soak
def test_a_restore_that_was_killed_is_begun_anew(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    killed(site, target, "pgrecovery.promote")
    assert site.salt["pgcluster.condition"](site.at["data"]) != "gone"
    assert site.call("pgpitr.kept")["step"] == "begun"
    with pytest.raises(CommandExecutionError, match="was cut off"):
        site.call("pgpitr.forget")
    done = site.restore(target)
    assert done["changed"]
    assert site.enabled
    assert site.notes() == ["one"]
    assert len(site.call("pgpitr.kept")["folders"]) == 2


@pytest.mark.soak
def test_a_restore_that_was_killed_before_its_server_began_is_brought_to_its_end(
    site: Site,
) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    killed(site, target, "service.start")
    assert site.call("pgpitr.kept")["step"] == "restored"
    with pytest.raises(CommandExecutionError, match="was cut off"):
        site.call("pgpitr.forget")
    (backup,) = site.report()["store"]["backups"]
    done = site.call("pgpitr.restore", target, backup["label"], 1, backup["bytes"])
    assert not done["changed"]
    assert site.enabled
    assert site.notes() == ["one"]
    assert site.call("pgpitr.kept")["stands"]


@pytest.mark.soak
def test_a_database_that_was_begun_since_a_restore_was_cut_off_is_left_alone(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    killed(site, target, "pgrecovery.promote")
    # Somebody makes do with what is there, and weeks go by.
    site.salt["pgrecovery.stop"](site.at)
    site.service("start")
    site.salt["pgcluster.wait_until"](
        lambda: site.psql("SELECT pg_is_in_recovery();") == "t", 30, "the half copy", ""
    )
    with pytest.raises(CommandExecutionError, match="was cut off"):
        site.call("pgpitr.forget")
    site.psql("SELECT pg_promote();")
    site.note("living")
    with pytest.raises(CommandExecutionError, match=r"left alone.*active and its server"):
        site.restore(target)
    assert site.notes() == ["living", "one"]
    (kept,) = site.call("pgpitr.forget")
    assert not os.path.exists(kept)
    assert site.notes() == ["living", "one"]
    assert site.restore(target)["changed"]
    assert site.notes() == ["one"]


@pytest.mark.soak
def test_a_restore_does_not_wait_for_standbys_that_are_away(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    # As Patroni writes it, and has no standby that would take part in the restore.
    with open(f"{site.at['config']}/postgresql.conf", "a", encoding="utf-8") as file:
        file.write("synchronous_standby_names = '*'\n")
    assert site.restore(target)["one_time_keys"] == 0
    assert site.notes() == ["one"]


@pytest.mark.soak
def test_a_copy_that_is_not_fit_for_use_does_not_run_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise CommandExecutionError("no promotion.")

    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    site.note("two")
    with monkeypatch.context() as patch:
        patch.setitem(site.salt, "pgrecovery.promote", fails)
        with pytest.raises(CommandExecutionError, match="not fit for use: no promotion"):
            site.restore(target)
    assert site.salt["pgcluster.condition"](site.at["data"]) == "gone"
    assert not site.enabled
    assert site.restore(target)["changed"]
    assert site.notes() == ["one"]


@pytest.mark.soak
def test_what_an_operator_does_and_sees(site: Site) -> None:
    salt_run = backup_site.Operator(site).module
    assert salt_run.status()["data"]["problems"] == [
        "backups: there is none -> salt-run backup.now full"
    ]
    assert salt_run.take("full").endswith(" s")
    assert salt_run.status()["retcode"] == 1, "one that was not restored does not count"
    assert salt_run.verify().startswith("good: ")
    shown = salt_run.status()
    assert shown["problems"] == []
    assert shown["primary"] == "database"
    assert "on database: good" in shown["backups"][0]["restored"]
    target = site.note("one")
    site.note("two")
    assert "timeline 1" in salt_run.covered(target)["said"]
    assert salt_run.restore(target)["changes"]["database"]["timeline"] == {"from": 1, "to": 2}
    assert site.notes() == ["one"]
    assert salt_run.restore(target)["changes"] == {}


@pytest.mark.soak
def test_a_machine_that_lost_everything_gets_all_that_is_in_the_store(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    site.note("one")
    site.psql("SELECT pg_switch_wal();")
    wait_for("the archive", lambda: site.psql(WAITING) == "0")
    site.service("stop")
    # As its package makes a cluster on a new machine: another one, with nothing in it.
    site.anew()
    salt_run = backup_site.Operator(site).module
    assert "timeline 1" in salt_run.covered("latest")["said"]
    assert salt_run.restore("latest")["changes"]["database"]["timeline"]["to"] == 2
    assert site.notes() == ["one"]
    assert salt_run.take("full").startswith("20")


@pytest.mark.soak
def test_what_is_too_old_goes_with_all_that_needs_it(renderer: trees.Renderer) -> None:
    with backup_site.site(renderer, keep_full=1) as site, site.store():
        site.call("pgbackrest.create")
        for type_ in ("full", "diff", "full"):
            last = site.call("pgbackrest.backup", type_)
        said = site.report()["store"]
        assert [row["label"] for row in said["backups"]] == [last["taken"]]
        assert [row["first"] for row in said["stretches"]] == [last["first"]]


@pytest.mark.soak
def test_a_store_with_another_s_certificate_gets_nothing(renderer: trees.Renderer) -> None:
    with backup_site.site(renderer) as site, site.store():
        stranger = pki.make_authority("strangers", datetime.now(UTC))[0]
        (site.top / "authority.pem").write_text(stranger)
        with pytest.raises(CommandExecutionError, match="unable to verify certificate"):
            site.call("pgbackrest.create")
        assert list(site.bucket.iterdir()) == []


@pytest.mark.soak
def test_what_was_damaged_before_its_backup_is_found(site: Site) -> None:
    site.psql("CREATE TABLE much AS SELECT md5(g::text) FROM generate_series(1, 9000) g;")
    site.psql("CHECKPOINT;")
    path = Path(site.at["data"], site.psql("SELECT pg_relation_filepath('much');"))
    site.service("stop")
    with path.open("r+b") as file:
        # The first rows of the second page begin beyond its end.
        file.seek(8192 + 24)
        file.write(b"\xff\x7f\xff\xff" * 4)
    site.service("start")
    done = site.call("pgbackrest.backup", "full")
    seen = site.call("pgbackrest.verify", done["taken"], done["bytes"])
    assert not seen["good"]
    assert "is damaged" in seen["why"]


@pytest.mark.soak
def test_a_server_that_archives_already_becomes_known_to_the_store(
    renderer: trees.Renderer,
) -> None:
    with backup_site.site(renderer) as site:
        for word in ("one", "two", "three"):
            site.note(word)
            site.psql("SELECT pg_switch_wal();")
        with site.store():
            locks = site.top / "lock"
            wait_for("an attempt", lambda: bool(list(locks.glob("*archive*.lock"))), 30)
            site.call("pgbackrest.create")
            wait_for("the archive", lambda: site.psql(WAITING) == "0", 60)
            site.call("pgbackrest.backup", "full")


@pytest.mark.soak
def test_a_standby_is_not_restored_beside_its_primary(site: Site) -> None:
    site.call("pgbackrest.backup", "full")
    target = site.note("one")
    found = site.source(target)
    site.service("stop")
    Path(site.at["data"], "standby.signal").touch()
    site.service("start")
    with pytest.raises(CommandExecutionError, match="runs, and is no primary"):
        site.call("pgpitr.restore", target, found.label, found.timeline, found.bytes)
    assert site.report()["server"]["standby"]
    with pytest.raises(CommandExecutionError, match="backups are taken of the primary"):
        site.call("pgbackrest.backup", "full")
    assert "a standby" in site.nightly()["why"]
