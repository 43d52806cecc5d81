"""The hook on ``DatabasePool.new_transaction``: whole interactions go to a standby, or do not.

It runs in a database thread that has an idle connection to the primary. Never are two servers read
within one interaction, and never is it run on both at once: what fails on a standby is run again,
all of it, on the primary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2
import psycopg2.extensions as pg
from synapse.storage.database import DatabasePool, LoggingDatabaseConnection

from .attempt import Attempt
from .config import Config
from .connections import StandbyConnection
from .errors import Fallback
from .metrics import FENCES, INTERACTIONS, OUTCOMES, SECONDS
from .read_index import ReadIndex
from .standby import Standby
from .standbys import Standbys
from .watchdog import Watchdog
from .writers import PRIMARY_ONLY, Writers, name_of

logger = logging.getLogger(__name__)

R = TypeVar("R")
Callbacks = list[Any]


class Router:
    """Of one database of Synapse's.

    :param database: whose interactions are routed.
    :param config: of the module.
    """

    read_index = ReadIndex

    def __init__(self, database: DatabasePool, config: Config) -> None:
        own: dict[str, Any] = database._database_config.config.get("args", {})
        self._database = database
        self._config = config
        self._original = database.new_transaction
        self.writers = Writers()
        self.index = self.read_index(own)
        self.standbys = Standbys(config, lambda entry: Standby(
            entry, own, self.index, self.prepare, config.wait_ms, config.longest_ms))
        self._watchdog = Watchdog(lambda: (self.index, *self.standbys.patrolled()))
        self._counts = {name: (INTERACTIONS.labels(name), SECONDS.labels(name))
                        for name in OUTCOMES}
        self._fences = {how: FENCES.labels(how) for how in ("free", "asked", "ahead")}

    def start(self) -> None:
        """Begin to route."""
        self._watchdog.start()
        self.index.start()
        self.standbys.start()
        self._database.new_transaction = self.new_transaction

    def stop(self) -> None:
        """All on the primary again, and no connection left."""
        self._database.new_transaction = self._original
        self.standbys.stop()
        self.index.stop()
        self._watchdog.stop()

    def prepare(self, connection: StandbyConnection) -> None:
        """A new connection becomes one of Synapse's, in autocommit: transactions are our own."""
        engine = self._database.engine
        engine.on_new_connection(self._wrapped(connection))
        connection.set_isolation_level(pg.ISOLATION_LEVEL_DEFAULT)
        connection.autocommit = True

    def new_transaction(
        self,
        conn: LoggingDatabaseConnection,
        desc: str,
        after_callbacks: Callbacks,
        async_after_callbacks: Callbacks,
        exception_callbacks: Callbacks,
        func: Callable[..., R],
        *args: Any,
        **kwargs: Any,
    ) -> R:
        """In the place of Synapse's own, with its contract."""
        begun = time.perf_counter()
        lists = (after_callbacks, async_after_callbacks, exception_callbacks)
        key = (desc, name_of(func))
        reason = self.why_not(conn, key)
        outcome = reason or "standby"
        try:
            if not reason:
                try:
                    return self._on_standby(desc, lists, func, args, kwargs)
                except Fallback as fallback:
                    outcome = fallback.outcome
                    if fallback.learn and self.writers.learn(key):
                        logger.info("standby reads: %s (%s) writes; from now on on the primary",
                                    *key)
            result: R = self._original(conn, desc, *lists, func, *args, **kwargs)
            return result
        finally:
            count, seconds = self._counts[outcome]
            count.inc()
            seconds.inc(time.perf_counter() - begun)

    def why_not(self, conn: LoggingDatabaseConnection, key: tuple[str, str]) -> str | None:
        """Why an interaction is not meant for a standby; None if it is."""
        only = self._config.only
        if key[0] in PRIMARY_ONLY:
            return "primary_only"
        if only and key[0] not in only:
            return "not_listed"
        if key in self.writers:
            return "writer"
        if conn.autocommit:
            return None if only or self._config.single_statements else "single"
        default: int = self._database.engine.default_isolation_level
        if conn.isolation_level != default or conn.status != pg.STATUS_READY:
            return "isolation"
        return None

    def _on_standby(
        self,
        desc: str,
        lists: tuple[Callbacks, Callbacks, Callbacks],
        func: Callable[..., R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> R:
        """One try.

        :raises Fallback: it is to run on the primary.
        :raises Exception: the function's own, such as that something is not there.
        """
        standby = self.standbys.choose()
        if standby is None:
            raise Fallback("no_standby")
        connection = standby.take()
        if connection is None:
            raise Fallback("connection_wanted")
        attempt = Attempt(self.index.get, self._config.wait_ms)
        own: tuple[Callbacks, Callbacks, Callbacks] = ([], [], [])

        def guarded(txn: Any, *args: Any, **kwargs: Any) -> R:
            try:
                result = func(txn, *args, **kwargs)
            except Exception as error:
                if isinstance(error, psycopg2.Error):
                    attempt.fail(error)
                attempt.verdict()
                raise
            # An error that the function has swallowed: on the primary it may not happen.
            attempt.verdict()
            return result

        outcome = ""
        connection.attempt = attempt
        try:
            result: R = self._original(
                self._wrapped(connection), desc, *own, guarded, *args, **kwargs
            )
        except Fallback as fallback:
            outcome = fallback.outcome
            raise
        except Exception:
            self._believe(attempt)
            lists[2].extend(own[2])
            raise
        finally:
            connection.attempt = None
            self._release(standby, connection, attempt, outcome)
        self._believe(attempt)
        for theirs, ours in zip(lists, own, strict=True):
            theirs.extend(ours)
        return result

    def _release(
        self, standby: Standby, connection: StandbyConnection, attempt: Attempt, outcome: str
    ) -> None:
        if outcome == "timeline":
            standby.doubt()
        try:
            if outcome == "connection":
                raise psycopg2.OperationalError
            connection.end()
        except psycopg2.Error:
            standby.drop(connection)
        else:
            standby.give(connection, attempt.asked, outcome == "lag")

    def _believe(self, attempt: Attempt) -> None:
        try:
            self._fences[attempt.believe()].inc()
        except Fallback as fallback:
            if fallback.outcome == "ahead":
                self._fences["ahead"].inc()
            raise

    def _wrapped(self, connection: StandbyConnection) -> LoggingDatabaseConnection:
        return LoggingDatabaseConnection(
            conn=connection,
            engine=self._database.engine,
            default_txn_name="standby_reads",
            server_name=self._database.server_name,
        )
