"""The plugin saltworks_patience on Synapse's own classes, Twisted's pool and PostgreSQL."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import synapse_packages
from tests.lab.driver import PROJECT
from tests.process.standby_servers import Servers, servers

ME = "SELECT pg_backend_pid()"


class Site:
    """A pool of Synapse's, asked in this thread as ``DatabasePool.runWithConnection`` does it."""

    def __init__(
        self, on: Servers, patient: bool = True, seconds: float = 20, silent: float = 5,
        hosts: tuple[int, ...] = (0,), service: str = "", **words: str,
    ) -> None:
        from synapse.storage.database import make_pool
        from twisted.internet import reactor

        from tests.process.standby_site import pool

        self.on = on
        args = {**on.args(*hosts), "connect_timeout": 2, **words}
        if service:
            for key in ("host", "port", "target_session_attrs", "connect_timeout"):
                del args[key]
            args["service"] = service
        self.database = pool(args)
        settings = SimpleNamespace(name="master", config={"name": "psycopg2", "args": args})
        self.database._db_pool = make_pool(
            reactor=reactor, db_config=settings, engine=self.database.engine,
            server_name="lale.test",
        )
        if patient:
            from saltworks_patience import PatientPool

            PatientPool(self.database, seconds, silent).start()
        self.after: list[Any] = []

    def run(
        self, func: Callable[..., Any], autocommit: bool = False, between: Callable[[], Any] = int
    ) -> Any:
        """An interaction; ``between``: what happens once its connection was made ready."""
        from synapse.storage.database import LoggingDatabaseConnection

        engine = self.database.engine
        after: list[Any] = []

        def inner(conn: Any) -> Any:
            if engine.is_connection_closed(conn):
                conn.reconnect()
            try:
                if autocommit:
                    engine.attempt_to_set_autocommit(conn, True)
                wrapped = LoggingDatabaseConnection(
                    conn=conn, engine=engine, default_txn_name="x", server_name="lale.test")
                between()
                return self.database.new_transaction(wrapped, "test", after, [], [], func)
            finally:
                if autocommit:
                    engine.attempt_to_set_autocommit(conn, False)

        result = self.database._db_pool._runWithConnection(inner)
        self.after += after
        return result

    def me(self, txn: Any) -> int:
        txn.execute(ME)
        return int(txn.fetchone()[0])

    def end(self, backend: int) -> None:
        """The server ends a session, as a primary does that gives up."""
        self.on.sql(f"SELECT pg_terminate_backend({backend}, 5000)", database="postgres")


@pytest.fixture(scope="module")
def on(synapse_release: Path) -> Iterator[Servers]:
    synapse_packages.add_synapse(synapse_release)
    sys.path.append(str(PROJECT / "formulas/synapse/files/plugins"))
    with servers(0) as made:
        made.sql("SET ROLE synapse; CREATE TABLE t (n integer);")
        yield made


def cut_once(site: Site, write: str = "INSERT INTO t VALUES (1)") -> Callable[[Any], int]:
    """An interaction that loses its connection in the middle, the first time."""
    runs = 0

    def func(txn: Any) -> int:
        nonlocal runs
        runs += 1
        txn.call_after(lambda: None)
        txn.execute(write)
        if runs == 1:
            site.end(site.me(txn))
        txn.execute("SELECT 1")
        return runs

    return func


def rows(on: Servers) -> int:
    return int(on.sql("SELECT count(*) FROM t"))


def test_without_it_a_request_fails_for_each_connection_that_has_ended(on: Servers) -> None:
    site = Site(on, patient=False)
    site.end(site.run(site.me))
    with pytest.raises(Exception, match=r"closed|terminat|wrong|^$"):
        site.run(site.me)
    assert site.run(site.me)


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_idle_connection_that_has_ended_is_replaced(on: Servers, autocommit: bool) -> None:
    site = Site(on)
    before = site.run(site.me, autocommit)
    assert site.run(site.me, autocommit) == before
    site.end(before)
    assert site.run(site.me, autocommit) != before


def test_what_is_cut_off_runs_again_as_if_it_had_never_run(on: Servers) -> None:
    site, before = Site(on), rows(on)
    assert site.run(cut_once(site)) == 2
    assert rows(on) == before + 1
    assert len(site.after) == 2, "callbacks accumulate: Synapse gives ids of streams back by them"
    # The new connection is as Synapse makes it.
    def level(txn: Any) -> str:
        txn.execute("SHOW transaction_isolation")
        return str(txn.fetchone()[0])

    assert site.run(level) == "repeatable read"
    assert site.run(cut_once(site, "SELECT 1"), autocommit=True) == 2
    assert site.run(level) == "repeatable read"


def test_a_commit_without_an_answer_is_not_repeated(on: Servers) -> None:
    from twisted.enterprise.adbapi import ConnectionLost

    site, runs = Site(on), []

    def func(txn: Any) -> None:
        runs.append(1)
        txn.execute("INSERT INTO t VALUES (2)")
        site.end(site.me(txn))

    with pytest.raises(ConnectionLost):
        site.run(func)
    assert runs == [1]
    assert site.run(site.me)


def test_who_fetches_events_goes_on_with_a_new_connection(on: Servers) -> None:
    """Synapse does so in a loop within one ``runWithConnection`` (``_do_fetch``)."""
    from synapse.storage.database import LoggingDatabaseConnection
    from twisted.enterprise.adbapi import ConnectionLost

    site = Site(on)
    database = site.database
    runs: list[int] = []

    def fetch(txn: Any) -> None:
        runs.append(site.me(txn))
        if len(runs) == 1:
            site.end(runs[0])

    def loop(conn: Any) -> None:
        wrapped = LoggingDatabaseConnection(
            conn=conn, engine=database.engine, default_txn_name="x", server_name="lale.test")
        # Its COMMIT got no answer, but it only reads.
        database.new_transaction(wrapped, "do_fetch", [], [], [], fetch)
        assert len(runs) == 2
        with pytest.raises(ConnectionLost):
            database.new_transaction(wrapped, "x", [], [], [], lambda txn: site.end(site.me(txn)))
        database.new_transaction(wrapped, "do_fetch", [], [], [], fetch)
        # Nor is it anything to one that ends while nobody uses it.
        site.end(runs[-1])
        database.new_transaction(wrapped, "x", [], [], [], fetch)
        assert len({*runs}) == 4

    database._db_pool._runWithConnection(loop)


def test_what_is_cut_off_again_and_again_fails(on: Servers) -> None:
    from twisted.enterprise.adbapi import ConnectionLost

    site, runs = Site(on), []

    def func(txn: Any) -> None:
        runs.append(1)
        site.end(site.me(txn))
        txn.execute("SELECT 1")

    with pytest.raises(ConnectionLost):
        site.run(func)
    assert len(runs) == 3


@contextlib.contextmanager
def away(on: Servers) -> Iterator[None]:
    """There is no primary within the block."""
    on.control(0, "-m", "fast", "stop")
    try:
        yield
    finally:
        on.start(0)


def test_it_waits_for_a_primary_until_one_is_there(on: Servers) -> None:
    site = Site(on)
    before = site.run(site.me)
    with ThreadPoolExecutor(1) as pool:
        with away(on):
            waiting = pool.submit(site.run, site.me)
            time.sleep(1)
            assert not waiting.done()
        assert waiting.result(20) != before


def test_an_outage_is_waited_for_once_by_all_who_stand_in_the_queue(on: Servers) -> None:
    site = Site(on, seconds=2)
    with away(on):
        begun = time.monotonic()
        for _ in range(6):
            with pytest.raises(site.database.engine.module.OperationalError):
                site.run(site.me)
        # The first waits; six times as long it would be 12 s.
        assert 2 <= time.monotonic() - begun < 8
    # The primary is looked for each second.
    time.sleep(2)
    assert site.run(site.me)
    with away(on):
        begun = time.monotonic()
        with pytest.raises(site.database.engine.module.OperationalError):
            site.run(site.me)
        assert time.monotonic() - begun >= 2, "the next outage is another one"


def test_a_process_that_stops_does_not_wait(on: Servers) -> None:
    site = Site(on)
    with away(on):
        site.database._db_pool.threadpool.joined = True
        begun = time.monotonic()
        with pytest.raises(site.database.engine.module.OperationalError):
            site.run(site.me)
        assert time.monotonic() - begun < 10


def test_a_wrong_password_is_not_waited_for(on: Servers) -> None:
    site = Site(on, password="another")
    begun = time.monotonic()
    with pytest.raises(site.database.engine.module.OperationalError, match="authentication failed"):
        site.run(site.me)
    assert time.monotonic() - begun < 10


def test_other_errors_are_as_ever(on: Servers) -> None:
    site = Site(on)
    with pytest.raises(site.database.engine.module.ProgrammingError):
        site.run(lambda txn: txn.execute("SELECT nothing FROM nowhere"))
    assert site.run(site.me)


@pytest.fixture
def pair(synapse_release: Path) -> Iterator[Servers]:
    """A primary with a standby, for one test: it is another one afterwards."""
    with servers(1) as made:
        made.sql("SET ROLE synapse; CREATE TABLE t (n integer);")
        made.caught_up(1)
        yield made


def place(site: Site, txn: Any) -> int:
    """The port of the server that a transaction runs on."""
    txn.execute("SHOW port")
    return int(txn.fetchone()[0])


def noting(site: Site, runs: list[int]) -> Callable[[Any], None]:
    """An interaction that writes, and notes where it does each time that it runs."""

    def func(txn: Any) -> None:
        runs.append(-1)
        txn.execute("INSERT INTO t VALUES (3)")
        runs[-1] = place(site, txn)

    return func


def test_who_waits_for_a_silent_server_is_cut_off_once_another_takes_writes(
    on: Servers, pair: Servers
) -> None:
    site = Site(pair, silent=1, hosts=(0, 1))
    runs: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        # The thread has its connection before the server stands still.
        pool.submit(site.run, site.me).result()
        pair.freeze(0)
        waiting = pool.submit(site.run, noting(site, runs))
        time.sleep(4)
        assert not waiting.done(), "nobody else takes writes yet"
        pair.promote(1)
        waiting.result(15)
    assert runs == [-1, pair.all[1]["port"]]
    assert rows(pair) == 1


def test_a_server_that_goes_on_after_another_took_over_is_asked_nothing(
    on: Servers, pair: Servers
) -> None:
    """It would answer out of the past: who syncs would never see what came in between."""
    site = Site(pair, silent=1, hosts=(0, 1))
    runs: list[int] = []
    with ThreadPoolExecutor(1) as old, ThreadPoolExecutor(1) as new:
        old.submit(site.run, site.me).result()
        pair.freeze(0)
        pair.promote(1)
        # Nobody uses the connection meanwhile.
        time.sleep(8)
        pair.thaw()
        assert pair.sql("SELECT pg_is_in_recovery()", 0) == "f", "it takes itself for the primary"
        for pool in (old, new):
            pool.submit(site.run, noting(site, runs)).result(10)
    assert runs == [pair.all[1]["port"]] * 2


def test_a_database_that_came_after_the_connections_is_known(
    on: Servers, pair: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's file is read again for each connection."""
    file = tmp_path / "pg_service.conf"
    monkeypatch.setenv("PGSERVICEFILE", str(file))

    def say(*which: int) -> None:
        words = {key: pair.args(*which)[key] for key in ("host", "port", "target_session_attrs")}
        rows = "".join(f"{key}={word}\n" for key, word in words.items())
        file.write_text(f"[chat]\n{rows}connect_timeout=2\n")

    say(0)
    site = Site(pair, silent=1, service="chat")
    runs: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(site.run, site.me).result()
        say(0, 1)
        pair.freeze(0)
        waiting = pool.submit(site.run, noting(site, runs))
        time.sleep(0.5)
        pair.promote(1)
        waiting.result(20)
    assert runs[-1] == pair.all[1]["port"]


def test_a_process_stops_although_the_database_says_nothing(on: Servers, pair: Servers) -> None:
    from psycopg2 import Error

    site = Site(pair, silent=1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(site.run, site.me).result()
        pair.freeze(0)
        waiting = pool.submit(site.run, site.me)
        time.sleep(0.5)
        site.database._db_pool.threadpool.joined = True
        with pytest.raises(Error):
            waiting.result(10)


def waiting_sessions(on: Servers) -> int:
    """Of PostgreSQL's sessions those that wait for a synchronous standby."""
    return int(on.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))


def test_a_primary_that_acknowledges_nothing_is_believed_by_nobody_nor_filled_with_sessions(
    on: Servers,
) -> None:
    from psycopg2 import Error

    on.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    on.sql("SELECT pg_reload_conf()")
    try:
        site = Site(on, silent=1, seconds=8)
        with pytest.raises(Error):
            site.run(site.me)
        assert waiting_sessions(on) <= 1
    finally:
        on.sql("ALTER SYSTEM RESET synchronous_standby_names")
        on.sql("SELECT pg_reload_conf()")
    time.sleep(2)
    assert site.run(site.me)


def test_who_gives_up_waiting_does_not_ask_the_silent_server_either(
    on: Servers, pair: Servers
) -> None:
    from psycopg2 import OperationalError

    site = Site(pair, silent=1, seconds=3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(site.run, site.me).result()
        pair.freeze(0)
        time.sleep(6)
        for _ in range(2):
            with pytest.raises(OperationalError):
                pool.submit(site.run, site.me).result(8)
        pair.thaw()
        time.sleep(2)
        assert pool.submit(site.run, site.me).result(8)
        # The next outage is waited for from its own beginning.
        assert site.database.new_transaction.__self__._since is None


@pytest.mark.parametrize("autocommit", [False, True])
def test_what_is_renewed_is_as_it_was(on: Servers, autocommit: bool) -> None:
    site = Site(on)
    before = site.run(site.me, autocommit)

    def state(txn: Any) -> tuple[bool, bool]:
        return txn.txn.connection.autocommit, site.me(txn) == before

    assert site.run(state, autocommit, lambda: site.end(before)) == (autocommit, False)


def test_what_takes_long_on_a_primary_that_answers_is_left_alone(
    on: Servers, pair: Servers
) -> None:
    site, runs = Site(pair, silent=0.5, hosts=(0, 1)), []

    def func(txn: Any) -> None:
        runs.append(1)
        txn.execute("SELECT pg_sleep(10)")

    site.run(func)
    assert len(runs) == 1
