"""A real PostgreSQL of an older version gives its database to a newer one, and takes it back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.lab.driver import wait_for
from tests.process import pg_pair, postgres, synapse_tables
from tests.process.pg_pair import QUICK, ROLE, SECRET

Json = dict[str, Any]

OLD_PORT, NEW_PORT = 54781, 54782
NEW = f"{QUICK}wal_level = logical\n"
#: Without a key: an index that may name its rows, one that may not, none, and a quoted name.
KEYLESS = """
CREATE TABLE pushes (user_id text NOT NULL, n bigint NOT NULL, note text);
CREATE UNIQUE INDEX pushes_index ON pushes (user_id, n);
CREATE TABLE inbox (user_id text, stream_id bigint, body text, UNIQUE (user_id, stream_id));
CREATE TABLE "Odd Name" (n integer, b bytea);
CREATE UNLOGGED TABLE worker_locks (n integer);
CREATE SEQUENCE numbers; CREATE SEQUENCE untouched;
CREATE SEQUENCE "Set Anew"; ALTER SEQUENCE "Set Anew" RESTART WITH 40;
SELECT nextval('numbers') FROM generate_series(1, 7);
INSERT INTO pushes SELECT '@anna:lale.test', n FROM generate_series(1, 50) n;
INSERT INTO inbox SELECT '@anna:lale.test', n, 'für ' || n FROM generate_series(1, 50) n;
INSERT INTO "Odd Name" SELECT n, decode(md5(n::text), 'hex') FROM generate_series(1, 9) n;
"""
CHANGES = """
UPDATE pushes SET note = 'seen' WHERE n <= 10; DELETE FROM pushes WHERE n > 40;
UPDATE inbox SET body = NULL WHERE stream_id = 1; DELETE FROM inbox WHERE stream_id > 45;
DELETE FROM "Odd Name" WHERE n = 3; DELETE FROM account_data;
UPDATE users SET password_hash = 'new' WHERE name = '@anna:lale.test';
"""


class Pair(pg_pair.Pair):
    """An old cluster with a database of Synapse's shape, and an empty new one."""

    def publish(self) -> list[str]:
        """What the milestone does on the old cluster before the copy."""
        lines = [f"host synapse {ROLE} 127.0.0.1/32 scram-sha-256"]
        roles = {
            ROLE: {"password": SECRET, "replication": True},
            # Before 14 it is kept as MD5 by default.
            "synapse_user": {"password": postgres.PASSWORD},
        }
        self.call("pgadmit.admit", self.old, roles, lines)
        self.call("pgpublish.enable", self.old)
        changed: list[str] = self.call("pgpublish.publish", self.old, "synapse", ROLE)
        return changed

    def copy(self, timeout: float = 60) -> bool:
        owner = {"role": "synapse_user", "password": postgres.PASSWORD}
        follower = {"role": ROLE, "password": SECRET}
        words = (self.new, "synapse", owner, follower, self.way(self.old), timeout)
        return bool(self.call("pgsubscribe.copy", *words))

    def switch(self, old: Json, new: Json, followed: bool = True) -> tuple[Json, Json]:
        self.call("pglogical.ready_to_leave", old, "synapse")
        self.call("pglogical.ready_to_take", new, "synapse")
        fenced = self.call("pglogical.fence", old, "synapse")
        return fenced, self.call("pglogical.take_over", new, "synapse", fenced, followed)

    def content(self, at: Json) -> Json:
        """Rows and checksums of all tables as they are now."""
        tables = self.sql(
            at,
            "SELECT format('%I', relname) FROM pg_class WHERE relkind = 'r' AND "
            "relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1",
        ).splitlines()
        query = "SELECT count(*), sum(hashtextextended(t::text COLLATE \"C\", 0)::numeric) FROM"
        return {table: self.sql(at, f"{query} {table} t") for table in tables}

    def wait_equal(self) -> None:
        wait_for(
            lambda: self.content(self.old) == self.content(self.new), 20, "both to have the same"
        )

    def as_synapse(self, at: Json, script: str) -> str:
        """What the role that Synapse has gets to see, over TCP and by password."""
        params = {
            "host": "127.0.0.1", "port": at["port"], "user": "synapse_user", "dbname": "synapse",
            "password": postgres.PASSWORD,
        }  # fmt: skip
        there = {"bindir": at["bindir"], "os_user": None, "params": params}
        return str(self.call("pgcluster.sql", there, script))


@pytest.fixture
def pair(salt: Json) -> Iterator[Pair]:
    with paired(salt) as made:
        yield made


@contextlib.contextmanager
def paired(salt: Json, major: int = 14) -> Iterator[Pair]:
    with (
        postgres.cluster(OLD_PORT, config=QUICK, old=major) as old,
        postgres.cluster(NEW_PORT, config=NEW) as new,
    ):
        both = Pair(old, new, salt)
        quoted = postgres.PASSWORD.replace("'", "''")
        postgres.psql(
            old,
            f"CREATE ROLE synapse_user LOGIN PASSWORD '{quoted}';\n"
            "CREATE DATABASE synapse OWNER synapse_user TEMPLATE template0 LC_COLLATE 'C' "
            "LC_CTYPE 'C';",
        )
        events = "".join(synapse_tables.event(n) for n in range(1, 21))
        both.sql(old, f"SET ROLE synapse_user; {synapse_tables.TABLES} {events} {KEYLESS}")
        yield both


@pytest.mark.parametrize("major", [13, 14])
def test_there_and_back_without_loss(salt: Json, major: int) -> None:
    with paired(salt, major) as pair:
        assert postgres.psql(pair.old, "SHOW server_version_num")[:2] == str(major)
        there_and_back(pair)


def there_and_back(pair: Pair) -> None:
    assert pair.publish() != []
    assert pair.publish() == []
    assert pair.copy() is True
    assert pair.copy() is False
    pair.sql(pair.old, CHANGES)
    for number in range(100, 130):
        pair.say(pair.old, number)
    pair.sql(pair.old, "SELECT nextval('numbers')")
    fenced, promoted = pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) == 50
    assert pair.content(pair.old) == pair.content(pair.new)
    # Each does nothing when it is done, so that a run that died goes on.
    again = pair.call("pglogical.fence", pair.old, "synapse")
    assert not again["changed"]
    assert not pair.call("pglogical.take_over", pair.new, "synapse", again, True)["changed"]
    # The next number is the next, and who owns it all may go on.
    assert pair.as_synapse(pair.new, "SELECT nextval('numbers')") == "[9]"
    assert pair.sql(pair.new, "SELECT is_called FROM untouched") == "f"
    # As synapse_port_db has left many a server's.
    assert pair.sql(pair.new, 'SELECT last_value, is_called FROM "Set Anew"') == "40|f"
    pair.say(pair.new, 200)
    # The old one lets Synapse in no more, whoever starts it.
    for _ in range(2):
        with pytest.raises(CommandExecutionError, match="reject"):
            pair.as_synapse(pair.old, "SELECT 1")
        pair.call("pgserver.stop", pair.old, "fast", 20)
        pair.call("pglogical.awake", pair.old, "synapse")
    # Compared as of the switch, though people have written since.
    before = pair.call("pgcontent.measure", pair.old, "synapse")
    after = pair.call("pgcontent.measure", pair.new, "synapse")
    assert before["moment"] == after["moment"] == fenced["moment"] == promoted["moment"]
    assert before["tables"] == after["tables"]
    assert before["tables"]["public.events"][0] == 50
    assert "public.worker_locks" not in before["tables"]
    # It follows what is written on the new one, tables without a key as well.
    assert pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new)) is True
    assert pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new)) is False
    pair.sql(pair.new, "UPDATE inbox SET body = 'again'; DELETE FROM pushes WHERE n = 7")
    pair.say(pair.new, 202)
    pair.wait_equal()
    assert pair.call("pglogical.followed", pair.new, "synapse")["followed"]
    with pytest.raises(CommandExecutionError, match="has followed"):
        pair.call("pglogical.unfence", pair.old, "synapse")
    back = pair.switch(pair.new, pair.old, followed=False)[1]
    assert back["changed"]
    assert pair.events(pair.old) == 52
    assert pair.content(pair.old) == pair.content(pair.new)
    assert pair.as_synapse(pair.old, "SELECT nextval('numbers')") == "[10]"
    assert pair.as_synapse(pair.old, """SELECT nextval('"Set Anew"')""") == "[40]"
    with pytest.raises(CommandExecutionError, match="reject"):
        pair.as_synapse(pair.new, "SELECT 1")
    # Nothing of ours is left.
    assert pair.call("pgadmit.slots", pair.old, []) == ["saltworks_there"]
    assert pair.call("pgpublish.unpublish", pair.old, "synapse", ROLE) != []
    assert pair.call("pgpublish.unpublish", pair.old, "synapse", ROLE) == []
    pair.call("pgadmit.withdraw", pair.old, ROLE)
    query = "SELECT count(*) FROM pg_class WHERE relreplident IN ('f', 'i')"
    assert pair.sql(pair.old, query) == "0"
    assert "Saltworks" not in Path(f"{pair.old['config']}/pg_hba.conf").read_text()
    # And there once more.
    pair.publish()
    assert pair.copy() is True
    pair.say(pair.old, 300)
    pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) == 53


def test_a_restart_is_wanted_once_and_taken_back_with_the_rest(pair: Pair) -> None:
    assert pair.call("pgpublish.wants_restart", pair.old) is True
    pair.publish()
    assert pair.call("pgpublish.wants_restart", pair.old) is False
    assert pair.call("pgpublish.enable", pair.old)["changed"] is False
    assert pair.call("pgpublish.disable", pair.old) is True
    assert pair.call("pgpublish.disable", pair.old) is False
    # Still running with it, but the next restart would undo it: said again, without a restart.
    began = postgres.psql(pair.old, "SELECT pg_postmaster_start_time()")
    assert pair.call("pgpublish.enable", pair.old)["changed"] is True
    assert postgres.psql(pair.old, "SELECT pg_postmaster_start_time()") == began
    # One that does not come up with it comes up without it.
    pair.call("pgserver.stop", pair.old, "fast", 20)
    assert pair.call("pgpublish.disable", pair.old) is True
    assert postgres.psql(pair.old, "SHOW wal_level") == "replica"


def test_before_the_restart_nothing_is_published_and_no_table_is_touched(pair: Pair) -> None:
    pair.call("pgadmit.give", pair.old, {ROLE: {"password": SECRET, "replication": True}})
    planned = pair.call("pgpublish.publish", pair.old, "synapse", ROLE, test=True)
    assert planned == [
        "replica identity of 8 tables", f"rights of {ROLE}", "publication saltworks",
    ]  # fmt: skip
    with pytest.raises(CommandExecutionError, match="wal_level is replica, not logical"):
        pair.call("pgpublish.publish", pair.old, "synapse", ROLE)
    pair.sql(pair.old, "DELETE FROM inbox")


def test_an_index_names_rows_where_it_can_and_else_the_whole_row_does(pair: Pair) -> None:
    pair.publish()
    found = pair.sql(
        pair.old,
        "SELECT relname, relreplident FROM pg_class WHERE relkind = 'r' AND relname IN "
        "('pushes', 'inbox', 'Odd Name', 'events', 'worker_locks') ORDER BY 1",
    )
    kinds = dict(line.split("|") for line in found.splitlines())
    assert kinds == {
        "Odd Name": "f", "events": "d", "inbox": "f", "pushes": "i", "worker_locks": "d",
    }  # fmt: skip


def test_nobody_waits_for_a_table_that_somebody_else_holds(pair: Pair) -> None:
    """The lock is tried for a moment at a time; whoever comes behind us goes on."""
    psql = [f"{pair.old['bindir']}/psql", "-h", pair.old["socket"], "-p", str(OLD_PORT)]
    held = "BEGIN; SELECT count(*) FROM inbox; SELECT pg_sleep(10); COMMIT;"
    with subprocess.Popen(
        [*psql, "-U", pair.old["os_user"], "-d", "synapse", "-c", held],
        stdout=subprocess.DEVNULL, **pair.salt["pgcluster.identity"](pair.old["os_user"]),
    ) as holder:  # fmt: skip
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'inbox'::regclass AND granted"
        wait_for(lambda: pair.sql(pair.old, query) == "1", 9, "somebody to hold the table")
        waits = []

        def write() -> None:
            while holder.poll() is None:
                began = time.monotonic()
                pair.sql(pair.old, "INSERT INTO inbox VALUES ('@bela:lale.test', 0, '')")
                pair.sql(pair.old, "DELETE FROM inbox WHERE stream_id = 0")
                waits.append(time.monotonic() - began)

        writer = threading.Thread(target=write)
        writer.start()
        pair.call("pgpublish.identify", pair.old, "synapse")
        writer.join()
    assert pair.call("pgpublish.keyless", pair.old, "synapse") == []
    assert len(waits) > 3
    # Behind a lock that is waited for it would have been as long as that is held.
    assert max(waits) < 5


def test_what_is_written_during_the_copy_arrives(pair: Pair) -> None:
    pair.publish()
    pair.sql(pair.old, synapse_tables.many_events(1000, 9000))
    done = threading.Event()

    def chat() -> None:
        for number in range(20000, 21000):
            if done.is_set():
                return
            pair.say(pair.old, number)
            pair.sql(pair.old, f"UPDATE inbox SET body = '{number}' WHERE stream_id = 5")

    writer = threading.Thread(target=chat)
    writer.start()
    try:
        pair.copy()
        pair.call("pglogical.ready_to_take", pair.new, "synapse")
    finally:
        done.set()
        writer.join()
    pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) > 8021
    assert pair.content(pair.old) == pair.content(pair.new)


def test_a_half_copy_is_taken_away_and_begun_anew(pair: Pair) -> None:
    pair.publish()
    pair.sql(pair.old, "CREATE TABLE big (n integer PRIMARY KEY, t text)")
    rows = "SELECT n, repeat('x', 900) FROM generate_series(1, 90000) n"
    pair.sql(pair.old, f"INSERT INTO big {rows}")
    pair.call("pgpublish.publish", pair.old, "synapse", ROLE)
    provide = pair.salt["pgserver.provide"]
    subscribe = pair.salt["pgsubscribe.subscribe"]
    module = postgres.load(postgres.MODULES / "saltworks_pgsubscribe.py")
    module.__salt__ = pair.salt  # type: ignore[attr-defined]
    module.LOOK_SECONDS = 1  # type: ignore[attr-defined]

    def cut(*args: Any, **kwargs: Any) -> None:
        subscribe(*args, **kwargs)
        pair.call("pgserver.stop", pair.old, "immediate", 20)

    module.subscribe = cut  # type: ignore[attr-defined]
    pair.salt["pgsubscribe.copy"] = module.copy
    with pytest.raises(CommandExecutionError, match="takes the half copy away and begins anew"):
        pair.copy()
    # What was begun would go on by itself, and perhaps be done before the next run.
    pair.sql(pair.new, "ALTER SUBSCRIPTION saltworks DISABLE")
    pair.call("pgserver.start", pair.old, 20)
    module.subscribe = subscribe  # type: ignore[attr-defined]
    begun: list[str] = []

    def anew(*args: Any) -> Any:
        begun.append("anew")
        return provide(*args)

    pair.salt["pgserver.provide"] = anew
    pair.copy()
    assert begun == ["anew"]
    assert pair.sql(pair.new, "SELECT count(*) FROM big") == "90000"
    slots = "SELECT count(*) FROM pg_replication_slots"
    assert postgres.psql(pair.old, slots) == "1"


@pytest.mark.parametrize(
    "step",
    [
        "pgadmit.shut", "pgcontent.brief", "pgpublish.identify", "pgcontent.hold",
        "pgsubscribe.unsubscribe", "pgadmit.reopen",
    ],
)  # fmt: skip
def test_a_switch_that_died_in_the_window_goes_on(pair: Pair, step: str) -> None:
    """Whatever was done is done; what the next run does leads to the same."""
    pair.publish()
    pair.copy()
    whole = pair.salt[step]

    def die(*args: Any, **kwargs: Any) -> Any:
        pair.salt[step] = whole
        raise CommandExecutionError("killed")

    pair.salt[step] = die
    with pytest.raises(CommandExecutionError, match="killed"):
        pair.switch(pair.old, pair.new)
    fenced = pair.call("pglogical.fence", pair.old, "synapse")
    pair.call("pglogical.take_over", pair.new, "synapse", fenced, True)
    assert pair.as_synapse(pair.new, synapse_tables.event(100) + "SELECT 1") == "[1]"
    pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
    pair.wait_equal()
    with pytest.raises(CommandExecutionError, match="reject"):
        pair.as_synapse(pair.old, "SELECT 1")


def test_who_is_connected_is_thrown_out_by_the_fence(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    said: list[str] = []

    def stay() -> None:
        try:
            pair.as_synapse(pair.old, f"SELECT pg_sleep(30); {synapse_tables.event(100)}")
        except CommandExecutionError as problem:
            said.append(str(problem))

    session = threading.Thread(target=stay)
    session.start()
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'synapse_user'"
    wait_for(lambda: postgres.psql(pair.old, query) == "1", 10, "Synapse's session")
    pair.call("pglogical.fence", pair.old, "synapse")
    session.join(5)
    assert "terminating connection" in said[0]
    assert pair.events(pair.old) == 20


def test_tables_that_have_changed_since_the_copy_are_refused_and_copied_anew(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pair.sql(pair.old, "ALTER TABLE users ADD COLUMN locked boolean")
    fenced = pair.call("pglogical.fence", pair.old, "synapse")
    with pytest.raises(CommandExecutionError, match="other columns"):
        pair.call("pglogical.take_over", pair.new, "synapse", fenced, True)
    assert pair.call("pglogical.unfence", pair.old, "synapse") is True
    pair.as_synapse(pair.old, "UPDATE users SET locked = true RETURNING 1")
    assert pair.copy() is True
    pair.switch(pair.old, pair.new)
    assert pair.sql(pair.new, "SELECT bool_and(locked) FROM users") == "t"


def test_a_copy_that_is_not_the_fenced_one_s_equal_is_refused(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    # A row that is not of the old one: written here by hand.
    pair.sql(pair.new, "INSERT INTO users VALUES ('@mallory:lale.test', '', 1, 0)")
    fenced = pair.call("pglogical.fence", pair.old, "synapse")
    with pytest.raises(CommandExecutionError, match="is not what it was: count of users"):
        pair.call("pglogical.take_over", pair.new, "synapse", fenced, True)
    assert pair.call("pglogical.unfence", pair.old, "synapse") is True
    assert pair.call("pglogical.unfence", pair.old, "synapse") is False
    pair.say(pair.old, 100)


def test_a_database_that_serves_is_never_thrown_away(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.say(pair.new, 100)
    with pytest.raises(CommandExecutionError, match="is fenced: nothing is copied"):
        pair.copy()
    pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
    with pytest.raises(CommandExecutionError, match="nothing is copied from there"):
        pair.copy()
    assert pair.events(pair.new) == 21


def test_a_subscriber_that_died_is_noticed_before_anything_is_given_up(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pid = int(Path(f"{pair.new['data']}/postmaster.pid").read_text().splitlines()[0])
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    for child in (pid, *map(int, children.stdout.split())):
        os.kill(child, 19)
    try:
        with pytest.raises(CommandExecutionError, match="in vain"):
            pair.call("pglogical.fence", pair.old, "synapse")
        assert pair.call("pglogical.unfence", pair.old, "synapse") is True
        pair.as_synapse(pair.old, synapse_tables.event(100) + "SELECT 1")
    finally:
        for child in (*map(int, children.stdout.split()), pid):
            os.kill(child, 18)


def test_the_way_back_in_the_window_does_not_need_the_new_one(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.call("pgserver.stop", pair.new, "immediate", 20)
    assert pair.call("pglogical.unfence", pair.old, "synapse") is True
    pair.as_synapse(pair.old, synapse_tables.event(101) + "SELECT 1")
    # What was left over there is thrown away by the next try.
    assert pair.copy() is True
    pair.switch(pair.old, pair.new)
    assert pair.sql(pair.new, "SELECT max(stream_ordering) FROM events") == "101"


def test_an_old_machine_that_was_away_gets_what_was_written_meanwhile(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
    pair.call("pgserver.stop", pair.old, "immediate", 20)
    for number in range(100, 120):
        pair.say(pair.new, number)
    away = pair.call("pglogical.followed", pair.new, "synapse")
    assert not away["followed"]
    assert "the other side to confirm" in away["why"]
    pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
    pair.wait_equal()
    assert pair.call("pglogical.status", pair.old, "synapse")["fenced"]


def test_once_it_is_given_up_nothing_is_kept_for_the_old_one(pair: Pair) -> None:
    pair.publish()
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
    pair.call("pgserver.stop", pair.old, "fast", 20)
    assert pair.call("pgadmit.slots", pair.new, []) == ["saltworks_back"]
    changed = pair.call("pgpublish.unpublish", pair.new, "synapse", ROLE)
    assert "publication saltworks" in changed
    query = "SELECT count(*) FROM pg_class WHERE relreplident IN ('f', 'i')"
    assert pair.sql(pair.new, query) == "0"


def test_what_speaks_against_it_inside_the_database(pair: Pair) -> None:
    found = pair.call("pgpublish.survey", pair.old, "synapse", "synapse_user")
    assert found["unlogged"] == ["public.worker_locks"]
    assert (found["owner"], found["superuser"], found["pending"]) == (True, False, [])
    pair.sql(
        pair.old,
        "CREATE TABLE docs (d json); CREATE MATERIALIZED VIEW totals AS SELECT 1 AS one; "
        "SELECT lo_create(0); CREATE EXTENSION citext; "
        "INSERT INTO background_updates VALUES ('slow_index', '{}');",
    )
    postgres.psql(pair.old, "ALTER ROLE synapse_user SUPERUSER")
    found = pair.call("pgpublish.survey", pair.old, "synapse", "synapse_user")
    assert found["unequal"] == ["public.docs.d"]
    assert found["odd"] == ["public.totals"]
    assert (found["large_objects"], found["superuser"]) == (1, True)
    assert (found["extensions"], found["pending"]) == (["citext"], ["slow_index"])
    assert not pair.call("pgpublish.survey", pair.old, "synapse", "nobody")["owner"]
