"""Standby reads between real PostgreSQL servers: never stale, never ahead, never a write."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.process.front_door import wait_for
from tests.process.standby_house import (
    MAX,
    all_pair,
    counted,
    packages,
    pair,
    reading,
    trio,
)
from tests.process.standby_servers import Servers

if TYPE_CHECKING:
    from tests.process.standby_site import Site

__all__ = ["all_pair", "packages", "pair", "trio"]

pytestmark = pytest.mark.alone

Json = dict[str, Any]


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
    from tests.process import standby_faults as faults

    stale = {}
    for router in (Router, naive.NaiveRouter):
        with faults.late(pair, 1, 25), reading_with(pair, router) as site:
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


@pytest.mark.parametrize("passed", [False, True])
def test_what_the_primary_does_not_show_yet_is_not_read(pair: Servers, passed: bool) -> None:
    """A commit that waits for another standby is on this one, and on the primary not yet.

    For the primary its id is beyond all that have finished, or, once a later one has, among those
    that run.
    """
    with reading(pair, 1) as site:
        pair.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        pair.sql("SELECT pg_reload_conf()")
        writer = threading.Thread(target=lambda: pair.sql("INSERT INTO t VALUES (7)"))
        writer.start()
        try:
            wait_for("the row on the standby", lambda: pair.sql(MAX, 1) == "7")
            assert pair.sql(MAX) == "0"
            if passed:
                pair.sql("BEGIN; INSERT INTO t VALUES (8); ROLLBACK")
            assert bool(site.router.index.get().running) == passed
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
