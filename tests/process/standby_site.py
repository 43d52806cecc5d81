"""A database pool of Synapse's own classes with standby reads on it, and no more of Synapse."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg2
from prometheus_client import REGISTRY
from synapse.storage.database import (
    DatabasePool,
    LoggingDatabaseConnection,
    PerformanceCounters,
)
from synapse.storage.engines import PostgresEngine

from synapse_standby_reads.config import parse, primary_args
from synapse_standby_reads.metrics import OUTCOMES
from synapse_standby_reads.router import Router
from synapse_standby_reads.standby import READY
from tests.process.front_door import wait_for

Json = dict[str, Any]


def pool(args: Json, **config: Any) -> DatabasePool:
    """As Synapse makes one, but for its threads and its connections."""
    made = object.__new__(DatabasePool)
    made.engine = PostgresEngine({"args": args, **config})
    made.server_name = "lale.test"
    made._database_config = SimpleNamespace(name="master", config={"args": args, **config})
    made._current_txn_total_time = 0.0
    made._txn_perf_counters = PerformanceCounters()
    return made


class Site:
    """:param args: Synapse's ``database.args``.
    :param config: the module's."""

    def __init__(self, args: Json, config: Json, router: type[Router] = Router) -> None:
        self.database = pool(args)
        self.router = router(self.database, parse(config))
        self._args = primary_args(args)
        self._own = threading.local()
        self.callbacks: list[tuple[str, Any]] = []

    def connection(self) -> Any:
        """This thread's to the primary, as Synapse has it."""
        found = getattr(self._own, "connection", None)
        if found is None or found.closed:
            found = psycopg2.connect(**self._args)
            self._own.connection = found
            self.database.engine.on_new_connection(self._wrapped(found))
        return found

    def run(self, desc: str, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``runInteraction`` without its thread."""
        after: list[Any] = []
        failed: list[Any] = []
        wrapped = self._wrapped(self.connection())
        try:
            result = self.database.new_transaction(
                wrapped, desc, after, [], failed, func, *args, **kwargs)
        except Exception:
            self.callbacks += [("failed", args[0]) for _, args, _ in failed]
            raise
        self.callbacks += [("after", args[0]) for _, args, _ in after]
        return result

    def read(self, sql: str, desc: str = "read") -> Any:
        """The first column of the first row, by an interaction of one statement."""

        def only_reads(txn: Any) -> Any:
            txn.execute(sql)
            return txn.fetchone()[0]

        return self.run(desc, only_reads)

    def served(self, sql: str) -> bool:
        """Whether a standby has answered it."""
        with counted() as got:
            self.read(sql)
        return got["standby"] == 1

    def ready(self, *names: str) -> None:
        """Wait until these standbys, and no others, serve."""
        wanted = set(names)
        wait_for(
            f"standbys {wanted}, which are {[(s.name, s.is_) for s in self.router.standbys]}",
            lambda: {s.name for s in self.router.standbys if s.is_ == READY} == wanted, 20,
        )
        if wanted:
            wait_for("an interaction on a standby", lambda: self.served("SELECT 1"), 20)

    def _wrapped(self, connection: Any) -> LoggingDatabaseConnection:
        return LoggingDatabaseConnection(
            conn=connection, engine=self.database.engine, default_txn_name="x",
            server_name="lale.test",
        )


@contextlib.contextmanager
def site(args: Json, config: Json, router: type[Router] = Router) -> Iterator[Site]:
    made = Site(args, config, router)
    made.router.start()
    try:
        yield made
    finally:
        made.router.stop()


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How interactions ended meanwhile."""
    before = {name: _count(name) for name in OUTCOMES}
    found: Counter[str] = Counter()
    yield found
    for name in OUTCOMES:
        if more := _count(name) - before[name]:
            found[name] = int(more)


def _count(outcome: str) -> float:
    name = "synapse_standby_reads_interactions_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0
