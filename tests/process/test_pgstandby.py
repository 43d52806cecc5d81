"""Two real PostgreSQL servers: one is copied, fenced, its copy promoted, and back again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import pg_pair, postgres, synapse_tables
from tests.process.pg_pair import QUICK, ROLE, SECRET

Json = dict[str, Any]

OLD_PORT, NEW_PORT = 54771, 54772


class Pair(pg_pair.Pair):
    """An old cluster with a database of Synapse's shape, and a new one that is to replace it."""

    def copy(self) -> bool:
        return bool(self.call("pgcopy.copy", self.new, self.way(self.old), timeout=60))

    def switch(self, old: Json, new: Json, followed: bool = True) -> tuple[Json, Json]:
        fenced = self.call("pgstandby.fence", old, "synapse")
        return fenced, self.call("pgstandby.promote", new, "synapse", fenced, followed)


@pytest.fixture
def pair(salt: Json) -> Iterator[Pair]:
    with paired(salt) as made:
        yield made


@contextlib.contextmanager
def paired(salt: Json, where: str | None = None) -> Iterator[Pair]:
    """Both clusters, the old one ready to be copied; ``where``: see ``postgres.cluster``."""
    with (
        postgres.cluster(OLD_PORT, where, config=QUICK) as old,
        postgres.cluster(NEW_PORT, where, config=QUICK, made=False) as new,
    ):
        both = Pair(old, new, salt)
        postgres.psql(
            old,
            "CREATE ROLE synapse_user LOGIN;\n"
            "CREATE DATABASE synapse OWNER synapse_user TEMPLATE template0 LC_COLLATE 'C' "
            "LC_CTYPE 'C';",
        )
        events = "".join(synapse_tables.event(n) for n in range(1, 21))
        both.sql(
            old,
            f"SET ROLE synapse_user; {synapse_tables.TABLES} {events} CREATE SEQUENCE numbers; "
            "SELECT nextval('numbers') FROM generate_series(1, 7); "
            "CREATE UNLOGGED TABLE locks (n integer);",
        )
        lines = [f"host replication {ROLE} 127.0.0.1/32 scram-sha-256"]
        roles = {ROLE: {"password": SECRET, "replication": True}}
        both.call("pgadmit.admit", old, roles, lines)
        Path(f"{new['config']}/pg_hba.conf").write_text(
            "local all all peer\n" + "".join(f"{line}\n" for line in lines)
        )
        yield both


def test_the_copy_streams_and_is_made_once(pair: Pair) -> None:
    assert pair.copy() is True
    assert pair.copy() is False
    pair.say(pair.old, 100)
    assert pair.call("pgstandby.near", pair.new)
    assert postgres.psql(pair.new, "SHOW max_connections") == "100"
    assert "receiving" in pair.call("pgstandby.status", pair.new)
    assert SECRET not in Path(f"{pair.new['data']}/postgresql.auto.conf").read_text()


def test_a_half_copy_is_taken_away_and_made_anew(pair: Pair) -> None:
    rows = "SELECT repeat('x', 900) t FROM generate_series(1, 90000)"
    pair.sql(pair.old, f"CREATE TABLE big AS {rows}")
    pair.salt["pgcluster.run"] = _cut_in_the_middle(pair.salt["pgcluster.run"])
    with pytest.raises(CommandExecutionError, match="takes the half copy away and begins anew"):
        pair.copy()
    assert not os.path.exists(f"{pair.new['data']}/global/pg_control")
    pair.salt["pgcluster.run"] = pair.salt["pgcluster.run"].whole
    assert pair.copy() is True
    assert pair.sql(pair.new, "SELECT count(*) FROM big") == "90000"


def _cut_in_the_middle(run: Any) -> Any:
    def cut(argv: list[str], *args: Any, **kwargs: Any) -> Any:
        if not argv[0].endswith("pg_basebackup"):
            return run(argv, *args, **kwargs)
        target = next(word for word in argv if word.startswith("--pgdata=")).partition("=")[2]

        def kill() -> None:
            # SIGKILL, so that it does not clean up after itself.
            end = time.monotonic() + 20
            while time.monotonic() < end and not os.path.isdir(f"{target}/base"):
                time.sleep(0.005)
            subprocess.run(["pkill", "-KILL", "-f", f"pg_basebackup.*{target}"], check=False)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            return run([*argv, "--max-rate=8M"], *args, **kwargs)
        finally:
            killer.join()

    cut.whole = run  # type: ignore[attr-defined]
    return cut


def test_there_and_back_without_loss(pair: Pair) -> None:
    pair.copy()
    for number in range(100, 130):
        pair.say(pair.old, number)
    for standby, at in ((False, pair.old), (True, pair.new)):
        pair.call("pgstandby.ready", at, standby)
    fenced, promoted = pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) == 50
    # Each does nothing when it is done, so that a run that died goes on.
    again = pair.switch(pair.old, pair.new)
    assert not again[0]["changed"]
    assert not again[1]["changed"]
    pair.say(pair.new, 200)
    # The old one takes no write, whoever starts it.
    pair.call("pgstandby.awake", pair.old)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        pair.say(pair.old, 201)
    assert "read-only transaction" in refused.value.stderr
    # Compared as of the switch, though people have written since.
    before = pair.call("pgcontent.measure", pair.old, "synapse")
    after = pair.call("pgcontent.measure", pair.new, "synapse")
    assert before["moment"] == after["moment"] == fenced["checkpoint"]
    assert before["tables"] == after["tables"]
    assert before["tables"]["public.events"][0] == 50
    assert "public.locks" not in before["tables"]
    assert pair.call("pgcontent.measured", pair.new) == after
    assert pair.call("pgstandby.follow", pair.old, pair.way(pair.new)) is True
    assert pair.call("pgstandby.follow", pair.old, pair.way(pair.new)) is False
    pair.say(pair.new, 202)
    # Now the old one holds more than it did when it was fenced: not to be taken back like that.
    with pytest.raises(CommandExecutionError, match="has followed another cluster"):
        pair.call("pgstandby.unfence", pair.old)
    for standby, at in ((False, pair.new), (True, pair.old)):
        pair.call("pgstandby.ready", at, standby)
    back = pair.switch(pair.new, pair.old, followed=False)[1]
    assert back["changed"]
    assert pair.events(pair.old) == 52
    assert pair.call("pgadmit.slots", pair.old, []) == ["saltworks_standby"]
    assert pair.call("pgadmit.slots", pair.old, []) == []
    # And there once more.
    assert pair.copy() is True
    pair.say(pair.old, 300)
    pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) == 53
    assert promoted["checkpoint"] != pair.call("pgcontent.moment", pair.new)


def test_a_primary_is_never_thrown_away(pair: Pair) -> None:
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.call("pgstandby.awake", pair.old)
    with pytest.raises(CommandExecutionError, match="is a standby itself"):
        pair.copy()
    assert pair.events(pair.new) == 20


def test_a_standby_that_died_is_noticed_before_the_primary_stops(pair: Pair) -> None:
    pair.copy()
    pid = int(Path(f"{pair.new['data']}/postmaster.pid").read_text().splitlines()[0])
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    for child in (pid, *map(int, children.stdout.split())):
        os.kill(child, signal.SIGSTOP)
    try:
        with pytest.raises(CommandExecutionError, match="in vain"):
            pair.call("pgstandby.fence", pair.old, "synapse")
        assert pair.call("pgstandby.unfence", pair.old) is False
        pair.say(pair.old, 100)
    finally:
        for child in (*map(int, children.stdout.split()), pid):
            os.kill(child, signal.SIGCONT)


def test_the_way_back_does_not_need_the_new_one(pair: Pair) -> None:
    pair.copy()
    pair.call("pgstandby.fence", pair.old, "synapse")
    postgres.as_user(
        pair.new, f"{pair.new['bindir']}/pg_ctl", "-D", pair.new["data"], "-m", "immediate", "stop"
    )
    assert pair.call("pgstandby.unfence", pair.old) is True
    pair.say(pair.old, 100)
    assert pair.events(pair.old) == 21
    # What was left over there is thrown away by the next try.
    assert pair.copy() is True
    pair.switch(pair.old, pair.new)
    assert pair.events(pair.new) == 21


def test_a_promoted_one_that_was_given_up_is_discarded(pair: Pair) -> None:
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.say(pair.new, 100)
    assert pair.call("pgstandby.unfence", pair.old) is True
    pair.say(pair.old, 101)
    assert pair.copy() is True
    assert pair.sql(pair.new, "SELECT max(stream_ordering) FROM events") == "101"


def test_a_copy_that_is_not_the_fenced_one_s_equal_is_refused(pair: Pair) -> None:
    pair.copy()
    fenced = pair.call("pgstandby.fence", pair.old, "synapse")
    other = {**fenced, "system_identifier": "1"}
    with pytest.raises(CommandExecutionError, match="is no copy of the fenced cluster"):
        pair.call("pgstandby.promote", pair.new, "synapse", other, True)
    assert pair.call("pgstandby.status", pair.new)["recovery"]
    other = {**fenced, "fingerprint": {**fenced["fingerprint"], "count:users": 5}}
    with pytest.raises(CommandExecutionError, match="is not what it was: count of users"):
        pair.call("pgstandby.promote", pair.new, "synapse", other, True)


def test_content_that_differs_and_a_moment_that_has_passed_are_seen(pair: Pair) -> None:
    pair.copy()
    pair.switch(pair.old, pair.new)
    pair.call("pgcontent.release", pair.new)
    with pytest.raises(CommandExecutionError, match="no longer held here"):
        pair.call("pgcontent.measure", pair.new, "synapse")


def test_who_may_connect(pair: Pair) -> None:
    lines = [f"host replication {ROLE} 127.0.0.1/32 scram-sha-256"]
    roles = {
        ROLE: {"password": SECRET, "replication": True},
        "synapse_user": {"password": postgres.PASSWORD},
    }
    assert pair.call("pgadmit.missing", pair.old, roles, lines) == ["role synapse_user"]
    assert pair.call("pgadmit.admit", pair.old, roles, lines) == ["role synapse_user"]
    assert pair.call("pgadmit.admit", pair.old, roles, lines) == []
    params = {
        "host": "127.0.0.1", "port": OLD_PORT, "user": "synapse_user", "dbname": "synapse",
        "password": postgres.PASSWORD,
    }  # fmt: skip
    there = {"bindir": pair.old["bindir"], "os_user": None, "params": params}
    assert pair.call("pgcluster.sql", there, "SELECT count(*) FROM events") == [20]
    path = Path(f"{pair.old['config']}/pg_hba.conf")
    before = path.read_text()
    with pytest.raises(CommandExecutionError, match="it is as it was"):
        pair.call("pgadmit.admit", pair.old, {}, ["host nonsense"])
    assert path.read_text() == before
    gone = pair.call("pgadmit.withdraw", pair.old, ROLE)
    assert gone == [str(path), f"role {ROLE}"]
    assert pair.call("pgadmit.withdraw", pair.old, ROLE) == []
    assert "Saltworks" not in path.read_text()
    with pytest.raises(CommandExecutionError, match="no role 'nobody'"):
        pair.call("pgadmit.missing", pair.old, {"nobody": {"password": "x"}}, [])


def test_what_a_copy_has_to_know(pair: Pair) -> None:
    found = pair.call("pgadmit.survey", pair.old)
    assert found["databases"]["synapse"] == {"encoding": "UTF8", "collate": "C", "ctype": "C"}
    assert set(found["databases"]) == {"postgres", "synapse"}
    assert (found["recovery"], found["ssl"], found["wal_level"]) == (False, False, "replica")


def test_an_empty_database_is_provided_once(pair: Pair) -> None:
    words = ("chat", "chat_user", postgres.PASSWORD)
    made = pair.call("pgserver.provide", pair.old, *words)
    assert made == ["role chat_user", "database chat"]
    assert pair.call("pgserver.provide", pair.old, *words) == []
    found = pair.call("pgadmit.survey", pair.old)["databases"]["chat"]
    assert found == {"encoding": "UTF8", "collate": "C", "ctype": "C"}
    params = {
        "host": "127.0.0.1", "port": OLD_PORT, "user": "chat_user", "dbname": "chat",
        "password": postgres.PASSWORD,
    }  # fmt: skip
    there = {"bindir": pair.old["bindir"], "os_user": None, "params": params}
    owner = "DROP SCHEMA public CASCADE; CREATE SCHEMA public; SELECT to_json(1);"
    assert pair.call("pgcluster.sql", there, owner) == [1]


def test_wal_for_a_copy_does_not_fill_the_disk_unless_others_need_it(pair: Pair) -> None:
    show = "SHOW max_slot_wal_keep_size"
    others = "SELECT pg_create_physical_replication_slot('theirs', true)"
    postgres.psql(pair.old, others)
    assert pair.call("pgserver.bound", pair.old, True) == []
    postgres.psql(pair.old, "SELECT pg_drop_replication_slot('theirs')")
    assert pair.call("pgserver.bound", pair.old, True, test=True) == ["max_slot_wal_keep_size"]
    assert postgres.psql(pair.old, show) == "-1"
    pair.salt["pgcluster.free_bytes"] = lambda path: 1 << 30
    # One that died after it had written down what it was about to do.
    at, record = pair.call("pgcluster.locate", pair.old), {"max_slot_wal_keep_size": "100MB"}
    pair.call("pgserver.record", at, "bounded", record)
    assert pair.call("pgserver.bound", pair.old, True) == ["max_slot_wal_keep_size"]
    record = pair.call("pgserver.recorded", at, "bounded")
    assert record["max_slot_wal_keep_size"] == "512MB"
    # Not with each run anew, though less is free by then.
    pair.salt["pgcluster.free_bytes"] = lambda path: 1 << 20
    assert pair.call("pgserver.bound", pair.old, True) == []
    assert postgres.psql(pair.old, show) == "512MB"
    assert pair.call("pgserver.bound", pair.old, False) == ["max_slot_wal_keep_size"]
    assert pair.call("pgserver.bound", pair.old, False) == []
    assert postgres.psql(pair.old, show) == "-1"


def test_the_copy_s_link_is_bound_to_its_password(pair: Pair) -> None:
    """As the milestone has it: nobody's certificate, and nobody in between."""
    at, key, crt = pair.old, f"{pair.old['socket']}/key", f"{pair.old['socket']}/crt"
    new = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", crt, "-subj", "/CN=legacy"]
    postgres.as_user(at, "openssl", "req", "-x509", "-sha256", *new)
    lines = [f"hostssl replication {ROLE} 127.0.0.1/32 scram-sha-256"]
    pair.call("pgserver.configure", at, ssl="on", ssl_cert_file=crt, ssl_key_file=key)
    pair.call("pgadmit.admit", at, {}, lines)
    way = {**pair.way(at), "sslmode": "require", "channel_binding": "require"}
    assert pair.call("pgcopy.copy", pair.new, way, timeout=60) is True
    pair.call("pgadmit.admit", at, {}, [f"hostssl replication {ROLE} 127.0.0.1/32 trust"])
    with pytest.raises(CommandExecutionError, match="channel binding"):
        pair.call("pgcopy.copy", pair.new, way, timeout=60)
