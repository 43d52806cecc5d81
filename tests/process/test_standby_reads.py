"""Standby reads between real PostgreSQL servers: never stale, never ahead, and never in the way."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import synapse_packages
from tests.process.front_door import wait_for
from tests.process.standby_servers import Servers, servers
from tests.render.conftest import synapse_release

if TYPE_CHECKING:
    from tests.process.standby_site import Site

__all__ = ["synapse_release"]

Json = dict[str, Any]

TABLES = """
CREATE TABLE t (n integer); INSERT INTO t VALUES (0);
CREATE TABLE unique_n (n integer PRIMARY KEY);
CREATE UNLOGGED TABLE locks (n integer);
CREATE SEQUENCE numbers;
"""
MAX = "SELECT max(n) FROM t"


@pytest.fixture(scope="module", autouse=True)
def packages(synapse_release: Path) -> None:
    synapse_packages.add_synapse(synapse_release)


@pytest.fixture
def pair() -> Iterator[Servers]:
    with servers(1) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        made.caught_up(1)
        yield made


@pytest.fixture
def trio() -> Iterator[Servers]:
    with servers(2) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        yield made


@contextlib.contextmanager
def reading(on: Servers, *standbys: int, **config: Any) -> Iterator[Site]:
    """A site of all these servers, whose standbys serve."""
    from tests.process.standby_site import site

    every = range(len(on.all))
    entries = [on.entry(number) for number in standbys or every]
    with site(on.args(*every), {"standbys": entries, "wait_ms": 40, **config}) as made:
        made.ready(*(on.name(number) for number in standbys or every if number != on.primary))
        yield made


def counted() -> Any:
    from tests.process import standby_site

    return standby_site.counted()


def test_what_was_written_before_is_read_whatever_the_standby_does(pair: Servers) -> None:
    with reading(pair, 1) as site:
        with counted() as got:
            for number in range(1, 101):
                pair.sql(f"INSERT INTO t VALUES ({number})") if number % 10 == 0 else None
                assert site.read(MAX) == number // 10 * 10
        assert got["standby"] > 80
        pair.sql("SELECT pg_wal_replay_pause()", 1)
        wait_for("the pause", lambda: pair.sql("SELECT pg_get_wal_replay_pause_state()", 1)
                 == "paused")
        pair.sql("INSERT INTO t VALUES (200)")
        with counted() as got:
            assert [site.read(MAX) for _ in range(8)] == [200] * 8
        # The third in a row that is late gives it a rest.
        assert got["lag"] == 3
        assert got["no_standby"] == 5
        pair.sql("SELECT pg_wal_replay_resume()", 1)
        wait_for("the standby", lambda: site.served(MAX))
        assert site.read(MAX) == 200


def test_it_waits_for_the_standby_and_the_reader_without_the_barrier_is_caught(
    pair: Servers,
) -> None:
    from synapse_standby_reads.router import Router
    from tests.process import naive

    pair.sql("ALTER SYSTEM SET recovery_min_apply_delay = '25ms'", 1)
    pair.sql("SELECT pg_reload_conf()", 1)
    stale = {}
    for router in (Router, naive.NaiveRouter):
        with reading_with(pair, router) as site:
            stale[router] = 0
            with counted() as got:
                for _ in range(30):
                    number = int(pair.sql("INSERT INTO t SELECT max(n) + 1 FROM t RETURNING n"))
                    stale[router] += site.read(MAX) != number
            assert got["standby"] >= 20
    assert stale[Router] == 0
    assert stale[naive.NaiveRouter] >= 20


@contextlib.contextmanager
def reading_with(on: Servers, router: Any) -> Iterator[Site]:
    from tests.process.standby_site import site

    config = {"standbys": [on.entry(1)], "wait_ms": 200}
    with site(on.args(0), config, router) as made:
        made.ready(on.name(1))
        yield made


def test_what_the_primary_does_not_show_yet_is_not_read(pair: Servers) -> None:
    """A commit that waits for another standby is on this one, and on the primary not yet."""
    with reading(pair, 1) as site:
        pair.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        pair.sql("SELECT pg_reload_conf()")
        writer = threading.Thread(target=lambda: pair.sql("INSERT INTO t VALUES (7)"))
        writer.start()
        try:
            wait_for("the row on the standby", lambda: pair.sql(MAX, 1) == "7")
            assert pair.sql(MAX) == "0"
            with counted() as got:
                assert site.read(MAX) == 0
            assert got == {"ahead": 1}
        finally:
            pair.sql("ALTER SYSTEM RESET synchronous_standby_names")
            pair.sql("SELECT pg_reload_conf()")
            writer.join(20)
        with counted() as got:
            assert site.read(MAX) == 7
        assert got == {"standby": 1}


def test_reads_never_go_back_under_writes(pair: Servers) -> None:
    """From the module to the primary, and again, while rows are written as fast as it goes."""
    ended = threading.Event()

    def write() -> None:
        pair.sql(
            "DO $$BEGIN FOR i IN 1..3000 LOOP INSERT INTO t SELECT max(n) + 1 FROM t; COMMIT; "
            "END LOOP; END$$"
        )
        ended.set()

    with reading(pair, 1, wait_ms=200) as site:
        writer = threading.Thread(target=write)
        writer.start()
        back = pairs = 0
        with counted() as got, site.connection() as primary, primary.cursor() as cursor:
            while not ended.is_set():
                seen = site.read(MAX)
                primary.rollback()
                cursor.execute(MAX)
                back += cursor.fetchone()[0] < seen
                primary.rollback()
                pairs += 1
        writer.join(30)
    assert back == 0
    assert got["standby"] > 50, (pairs, got)


def test_a_transaction_that_writes_for_long_costs_the_fence_nothing(pair: Servers) -> None:
    from prometheus_client import REGISTRY

    def fences(how: str) -> float:
        return REGISTRY.get_sample_value("synapse_standby_reads_fences_total", {"how": how}) or 0

    with reading(pair, 1) as site:
        long = site.connection().__class__(site.connection().dsn + " password=secret")
        with long.cursor() as cursor:
            cursor.execute("INSERT INTO unique_n VALUES (1)")
            pair.sql("INSERT INTO t VALUES (1)")
            pair.caught_up(1)
            before = fences("free"), fences("asked")
            with counted() as got:
                assert [site.read(MAX) for _ in range(20)] == [1] * 20
            assert got == {"standby": 20}
            assert (fences("free") - before[0], fences("asked") - before[1]) == (20, 0)
        long.close()


def test_writers_are_learnt_and_run_again_as_a_whole(pair: Servers) -> None:
    with reading(pair, 1) as site:
        runs: list[str] = []

        def write(txn: Any) -> int:
            runs.append("run")
            txn.call_after(runs.append, "after")
            txn.call_on_exception(runs.append, "failed")
            txn.execute("SELECT max(n) FROM t")
            txn.execute("INSERT INTO t SELECT max(n) + 1 FROM t RETURNING n")
            return int(txn.fetchone()[0])

        for outcome, tries in (("learn", 2), ("writer", 1)):
            runs.clear()
            site.callbacks.clear()
            with counted() as got:
                site.run("writes", write)
            assert got == {outcome: 1}
            assert runs == ["run"] * tries
            # Those of the try that did not count are gone.
            assert site.callbacks == [("after", "after")]
        assert pair.sql(MAX) == "2"


@pytest.mark.parametrize("sql", [
    "SELECT last_value FROM numbers", "SELECT nextval('numbers')",
    "SELECT pg_advisory_xact_lock(1)", "LOCK TABLE t IN SHARE MODE",
    "SELECT count(*) FROM locks", "SELECT n FROM t FOR UPDATE",
    "CREATE TEMP TABLE x ON COMMIT DROP AS SELECT 1",
])  # fmt: skip
def test_what_a_standby_refuses_or_would_answer_wrongly_is_the_primary_s(
    all_pair: Servers, sql: str
) -> None:
    with reading(all_pair, 1) as site:
        for outcome in ("learn", "writer"):
            with counted() as got:
                site.run(sql, lambda txn: txn.execute(sql))
            assert got == {outcome: 1}
        with counted() as got:
            many: list[list[Any]] = [[]]
            site.run("many " + sql, lambda txn: txn.executemany(sql, many))
        assert got == {"learn": 1}


@pytest.fixture(scope="module")
def all_pair(packages: None) -> Iterator[Servers]:
    """One for tests that change nothing."""
    with servers(1) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        made.caught_up(1)
        yield made


def test_an_error_that_the_function_swallows_is_not_believed(all_pair: Servers) -> None:
    def careless(txn: Any) -> str:
        with contextlib.suppress(Exception):
            txn.execute("INSERT INTO unique_n VALUES (5) ON CONFLICT DO NOTHING")
            return "written"
        return "swallowed"

    with reading(all_pair, 1) as site, counted() as got:
        assert site.run("careless", careless) == "written"
    assert got == {"learn": 1}


def test_the_function_s_own_verdict_is_passed_on(all_pair: Servers) -> None:
    def not_there(txn: Any) -> None:
        txn.call_on_exception(print, "failed")
        txn.call_after(print, "after")
        txn.execute("SELECT 1")
        raise LookupError("404")

    with reading(all_pair, 1) as site, counted() as got:
        with pytest.raises(LookupError):
            site.run("not there", not_there)
        assert site.callbacks == [("failed", "failed")]
        assert site.read("SELECT 2") == 2
    assert got == {"standby": 2}


def test_only_what_is_meant_for_a_standby_goes_there(all_pair: Servers) -> None:
    with reading(all_pair, 1, only=["read", "other"]) as site:
        for desc, outcome in (("read", "standby"), ("another", "not_listed"),
                              ("do_fetch", "primary_only")):
            with counted() as got:
                site.read("SELECT 1", desc)
            assert got == {outcome: 1}
    with reading(all_pair, 1) as site:
        engine = site.database.engine
        engine.attempt_to_set_autocommit(site.connection(), True)
        with counted() as got:
            site.read("SELECT 1")
        engine.attempt_to_set_autocommit(site.connection(), False)
        assert got == {"single": 1}
        site.connection().set_isolation_level(1)
        with counted() as got:
            site.read("SELECT 1")
        engine.attempt_to_set_isolation_level(site.connection(), None)
        assert got == {"isolation": 1}
    with reading(all_pair, 1, single_statements=True) as site:
        engine.attempt_to_set_autocommit(site.connection(), True)
        with counted() as got:
            site.read("SELECT 1")
        assert got == {"standby": 1}


def test_no_statement_no_question(all_pair: Servers) -> None:
    with reading(all_pair, 1) as site:
        fetches = site.router.index.fetches
        assert site.run("nothing", lambda txn: 5) == 5
        assert site.router.index.fetches == fetches
        site.read("SELECT 1")
        assert site.router.index.fetches == fetches + 1


def test_a_snapshot_is_one_and_is_let_go(all_pair: Servers) -> None:
    def twice(txn: Any) -> list[int]:
        seen = []
        for _ in range(2):
            txn.execute(MAX)
            seen.append(txn.fetchone()[0])
            all_pair.sql("INSERT INTO t SELECT max(n) + 1 FROM t")
            all_pair.caught_up(1)
        return seen

    idle = ("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND "
            "application_name = 'synapse_standby_reads'")
    with reading(all_pair, 1, wait_ms=500) as site, counted() as got:
        first, second = site.run("twice", twice)
        assert first == second
        wait_for("ROLLBACK", lambda: all_pair.sql(idle, 1) == "0", 2)
        assert site.read(MAX) == first + 2
    assert got == {"standby": 2}


def test_a_frozen_standby_is_left_and_a_slow_statement_is_not(pair: Servers) -> None:
    with reading(pair, 1) as site:
        with counted() as got:
            assert site.read("SELECT 1 FROM pg_sleep(1.5)") == 1
        assert got == {"standby": 1}
        pair.freeze(1)
        begun = time.monotonic()
        with counted() as got:
            assert site.read("SELECT 2") == 2
        assert time.monotonic() - begun < 2
        assert got == {"connection": 1}
        with counted() as got:
            begun = time.monotonic()
            assert [site.read("SELECT 3") for _ in range(20)] == [3] * 20
        assert got == {"no_standby": 20}
        assert time.monotonic() - begun < 1
        pair.thaw()
        site.ready(pair.name(1))


def test_a_killed_standby_costs_one_try(pair: Servers) -> None:
    with reading(pair, 1) as site:
        pair.kill(1)
        with counted() as got:
            assert [site.read("SELECT 3") for _ in range(20)] == [3] * 20
        assert got["connection"] <= 1
        assert got["connection"] + got["no_standby"] == 20
        pair.start(1)
        site.ready(pair.name(1))


def test_the_list_names_all_servers_and_follows_the_promotion(pair: Servers) -> None:
    """The one that is primary is skipped; the old primary serves once it is a standby."""
    with reading(pair) as site:
        pair.control(0, "-m", "fast", "stop")
        pair.promote(1)
        wait_for("the new primary", lambda: works(site, "INSERT INTO t VALUES (5)"), 20)
        with counted() as got:
            assert [site.read(MAX) for _ in range(10)] == [5] * 10
        assert got["standby"] == 0
        breakers = [standby.breaker_state() for standby in site.router.standbys]
        assert breakers[1] == 0
        pair.follow(0, 1)
        pair.start(0)
        site.ready(pair.name(0))
        assert site.router.index.timeline == 2
        assert works(site, "INSERT INTO t VALUES (6)")
        with counted() as got:
            assert [site.read(MAX) for _ in range(10)] == [6] * 10
        assert got["standby"] > 5


def works(site: Site, sql: str) -> bool:
    """Whether the primary takes a write, on a connection that may just have died."""
    import psycopg2

    def write(txn: Any) -> None:
        txn.execute(sql)

    write.__qualname__ = "DatabasePool.simple_insert_txn"
    try:
        site.run("works", write)
    except psycopg2.Error:
        site.connection().close()
        return False
    return True


def test_a_session_on_a_promoted_standby_takes_no_write(pair: Servers) -> None:
    import psycopg2

    with reading(pair, 1) as site:
        (standby,) = site.router.standbys
        connection = standby.take()
        assert connection
        pair.control(0, "-m", "fast", "stop")
        pair.promote(1)
        with pytest.raises(psycopg2.Error) as refused, connection.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (1)")
        assert refused.value.pgcode == "25006"
        standby.give(connection, True, False)


def test_a_standby_that_was_ahead_of_the_promoted_one_is_never_read(trio: Servers) -> None:
    """Its LSN is higher than the new primary's, and what it has is on no timeline of today."""
    with reading(trio) as site:
        trio.caught_up(2)
        trio.backend_cut(2)
        trio.sql("INSERT INTO t SELECT 1000 FROM generate_series(1, 20000)")
        trio.caught_up(1)
        # Connections to it know how far it is.
        site.ready(trio.name(1))
        assert site.served(MAX)
        assert site.read(MAX) == 1000
        trio.kill(0)
        trio.promote(2)
        wait_for("the new primary", lambda: works(site, "INSERT INTO t VALUES (1)"), 20)
        behind = "SELECT pg_current_wal_flush_lsn() < '{}'"
        assert trio.sql(behind.format(trio.sql("SELECT pg_last_wal_replay_lsn()", 1))) == "t"
        assert trio.sql(MAX, 1) == "1000"
        with counted() as got:
            assert [site.read(MAX) for _ in range(30)] == [1] * 30
            site.ready()
            assert [site.read(MAX) for _ in range(10)] == [1] * 10
        assert got["standby"] == 0


def test_several_share_the_reads_and_one_that_dies_leaves_them_to_the_other(
    trio: Servers,
) -> None:
    port = "SELECT inet_server_port()"
    ports = {number: int(trio.entry(number)["port"]) for number in (1, 2)}
    with reading(trio, 1, 2) as site:
        wait_for("both", lambda: {site.read(port) for _ in range(4)} == set(ports.values()))

        def twice(txn: Any) -> set[int]:
            found = set()
            for _ in range(3):
                txn.execute(port)
                found.add(txn.fetchone()[0])
            return found

        assert all(len(site.run("twice", twice)) == 1 for _ in range(10))
        trio.kill(1)
        with counted() as got:
            for _ in range(20):
                site.read("SELECT 1")
        assert got["connection"] <= 1
        assert got["standby"] >= 18
        assert {site.read(port) for _ in range(10)} == {ports[2]}


def test_standbys_come_and_go_by_the_file(trio: Servers, tmp_path: Path) -> None:
    from tests.process.standby_site import site as made

    path = tmp_path / "standbys.json"

    def write(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)

    with made(trio.args(0), {"standbys_file": str(path), "wait_ms": 40}) as site:
        assert not site.served("SELECT 1")
        for which in ([1], [1, 2], [2]):
            write(json.dumps([trio.entry(number) for number in which]))
            wait_for(f"standbys {which}", lambda want=which: {  # type: ignore[misc]
                standby.name for standby in site.router.standbys
            } == {trio.name(number) for number in want})
            site.ready(*(trio.name(number) for number in which))
        write("[{")
        wait_for("the bad file", lambda: site.router.standbys.bad_file)
        assert site.served("SELECT 1")
        write("[]")
        wait_for("none", lambda: not list(site.router.standbys))
        assert not site.served("SELECT 1")
        assert not site.router.standbys.bad_file


def test_the_standby_s_own_place_wins_over_a_service_of_many_hosts(
    all_pair: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.process.standby_site import site as made

    port = all_pair.all[0]["port"]
    file = tmp_path / "service.conf"
    file.write_text(
        f"[saltworks]\nhost=127.0.0.1,127.0.0.1\nhostaddr=127.0.0.1,127.0.0.1\n"
        f"port={port},{all_pair.all[1]['port']}\nuser=synapse\ndbname=synapse\n"
        "target_session_attrs=read-write\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    args = {"service": "saltworks", "password": "secret"}
    with made(args, {"standbys": [all_pair.entry(1)], "wait_ms": 40}) as site:
        site.ready(all_pair.name(1))
        assert site.read("SELECT inet_server_port()") == all_pair.all[1]["port"]
        assert site.router.index.connection
        assert site.router.index.connection.info.port == port


@pytest.mark.parametrize(("change", "back", "word"), [
    ("ALTER ROLE synapse SET synchronous_commit = off",
     "ALTER ROLE synapse RESET synchronous_commit", "synchronous_commit is off for synapse"),
    ("ALTER DATABASE synapse SET synchronous_commit = local",
     "ALTER DATABASE synapse RESET synchronous_commit", "synchronous_commit is local"),
    ("REVOKE pg_read_all_stats FROM synapse", "GRANT pg_read_all_stats TO synapse",
     "GRANT pg_read_all_stats TO synapse"),
])  # fmt: skip
def test_it_does_not_start_where_it_is_unsafe(
    all_pair: Servers, change: str, back: str, word: str
) -> None:
    from synapse_standby_reads import service
    from synapse_standby_reads.config import parse
    from synapse_standby_reads.errors import Refused
    from tests.process.standby_site import pool

    database = pool(all_pair.args(0, 1))
    before = database.new_transaction
    all_pair.sql(change)
    try:
        with pytest.raises(Refused, match=word):
            service.start(parse({"standbys": [all_pair.entry(1)]}), [database])
    finally:
        all_pair.sql(back)
    assert database.new_transaction == before
    unsafe = pool(all_pair.args(0), synchronous_commit=False)
    with pytest.raises(Refused, match="synchronous_commit: false"):
        service.start(parse({"standbys": [all_pair.entry(1)]}), [unsafe])
    alone = pool({**all_pair.args(1), "target_session_attrs": "any"})
    with pytest.raises(Refused, match="add target_session_attrs"):
        service.start(parse({"standbys": [all_pair.entry(1)]}), [alone])


def test_a_pooler_in_between_is_found(all_pair: Servers) -> None:
    """Poolers tell the client a process of their own."""
    from synapse_standby_reads import selfcheck
    from tests.process.pooler import pooler
    from tests.process.standby_site import site as made

    with pooler(all_pair.all[0]["port"]) as port:
        (found,) = selfcheck.ask({**all_pair.args(0), "port": port, "sslmode": "disable"})
        assert "is a pooler" in found
    with pooler(all_pair.all[1]["port"]) as port:
        args = {**all_pair.args(0), "sslmode": "disable"}
        with made(args, {"standbys": [{"host": "127.0.0.1", "port": port}]}) as site:
            (standby,) = site.router.standbys
            wait_for("the word", lambda: "is a pooler" in standby.is_)
            assert not site.served("SELECT 1")
