"""Synapse waits for a database whose primary changes, instead of answering each request with 500.

As it comes, each of its pooled connections to a primary that is gone answers one request with an
error, and so does each request while there is no primary. With this module

- an idle connection that the server has ended is replaced before it is used;
- a transaction that was cut off before its COMMIT was sent is run again: nothing of it was done.
  One whose COMMIT got no answer may have been done, and fails as ever. What runs without a
  transaction is run again too, as Synapse says it may be (``runInteraction``, ``db_autocommit``);
- a new connection is tried for as long as a failover takes;
- what waits for a server that says nothing is cut off as soon as another server takes writes. TCP
  does not notice: of a machine whose processes stand still the kernel goes on to answer, or what
  stands between does.

Who waits are the threads of Synapse's database pool, which have nothing else to do then; who cuts
off is a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2
from synapse.module_api import ModuleApi
from synapse.storage.database import DatabasePool, LoggingDatabaseConnection
from synapse.storage.engines import PostgresEngine
from twisted.enterprise.adbapi import Connection, ConnectionLost

#: How long a new connection is tried for, in seconds: a dead primary is replaced within 20, and
#: somewhat later where the store of its backups is away too.
WAIT_SECONDS = 30.0
#: Between two tries of a thread: the first, and the longest, to which it doubles.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
#: How often one transaction is run: a switchover cuts it off once.
ATTEMPTS = 3
#: A transaction that takes longer, in seconds, may wait for a server that has gone. Then the others
#: are asked, each second; and more seldom of one that takes so long that it is at work.
SILENT_SECONDS, ROUND_SECONDS = 5.0, 1.0
LONG_SECONDS, LONG_ROUND_SECONDS = 60.0, 10.0
#: Interactions that only read, so that they may be run again though their COMMIT got no answer. For
#: one ``do_fetch`` all wait who want an event that is in no cache.
READS = frozenset({"do_fetch"})
#: What no waiting mends, in libpq's words: there is no code where there is no connection yet.
HOPELESS = ("authentication failed", "no pg_hba.conf entry")

Callbacks = list[Any]
#: Host and port, as libpq has them.
Server = tuple[str, str]


class Patience:
    """The module; it has no configuration."""

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        for database in api._hs.get_datastores().databases:
            if isinstance(database.engine, PostgresEngine):
                PatientPool(database).start()

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        return config


class PatientPool:
    """Of one database of Synapse's.

    :param database: whose connections are looked after.
    :param seconds: see :data:`WAIT_SECONDS`.
    :param silent: see :data:`SILENT_SECONDS`.
    """

    def __init__(
        self,
        database: DatabasePool,
        seconds: float = WAIT_SECONDS,
        silent: float = SILENT_SECONDS,
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._silent = silent
        self._pool = database._db_pool
        self._connect = self._pool.connect
        self._closed = database.engine.is_connection_closed
        self._set_autocommit = database.engine.attempt_to_set_autocommit
        self._transaction = database.new_transaction
        self._lock = threading.Lock()
        #: By thread: its connection, that one's server, and the others there are.
        self._made: dict[int, tuple[Any, Server, list[Server]]] = {}
        #: By thread: when what it runs began, by ``time.monotonic()``.
        self._began: dict[int, float] = {}
        #: When the outage that lasts began, by ``time.monotonic()``; None while there is none.
        self._since: float | None = None
        # Only now: Synapse may silence the loggers that were there when it set up its log.
        self._logger = logging.getLogger(__name__)

    def start(self) -> None:
        """Begin to wait."""
        self._pool.connect = self.connect
        engine: Any = self._database.engine
        engine.is_connection_closed = self.is_closed
        engine.attempt_to_set_autocommit = self.set_autocommit
        self._database.new_transaction = self.new_transaction
        threading.Thread(target=self._watch, name="saltworks-patience", daemon=True).start()

    def connect(self) -> Any:
        """A connection of this thread's, as soon as there is a primary.

        All threads wait for the same outage: what stands in the queue until it has lasted for too
        long tries once, and fails.

        :raises OperationalError: there was none in time, or the process stops; the last try's.
        """
        if self._pool.threadID() in self._pool.connections:
            # It has one, whose state this says nothing of.
            return self._connect()
        pause = PAUSE_SECONDS
        while True:
            try:
                made = self._connect()
            except self._database.engine.module.OperationalError as error:
                if not self._waits(" ".join(str(error).split())):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._over()
                self._made[self._pool.threadID()] = self._place(made)
                return made

    def _place(self, made: Any) -> tuple[Any, Server, list[Server]]:
        # Asked now, by the thread that has it: libpq's own are of one thread at a time.
        info = made.info
        return (made, *servers(info.dsn_parameters, info.host, info.port))

    def _waits(self, said: str) -> bool:
        """Whether a try that failed is worth another one."""
        if any(words in said for words in HOPELESS):
            return False
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                self._logger.info("waiting for the database: %s", said)
            # A process that stops waits for its threads.
            in_time = time.monotonic() < self._since + self._seconds
            return in_time and not self._pool.threadpool.joined

    def _over(self) -> None:
        with self._lock:
            if self._since is not None:
                seconds = time.monotonic() - self._since
                self._logger.info("the database is back, after %.1f s", seconds)
            self._since = None

    def is_closed(self, conn: Any) -> bool:
        """Whether a connection that nobody uses has ended, at this end or at the server's."""
        return self._closed(conn) or has_ended(conn)

    def set_autocommit(self, conn: Any, autocommit: bool) -> None:
        """psycopg2 asks the server, which may have ended the connection just now."""
        try:
            self._set_autocommit(conn, autocommit)
        except self._database.engine.module.OperationalError:
            conn.reconnect()
            self._set_autocommit(conn, autocommit)

    def new_transaction(
        self,
        conn: LoggingDatabaseConnection,
        desc: str,
        after_callbacks: Callbacks,
        async_after_callbacks: Callbacks,
        exception_callbacks: Callbacks,
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """In the place of Synapse's own, with its contract.

        Callbacks of all attempts are called in the end, as Synapse has it (``call_after``): a
        stream's id that a cut off attempt took is given back by one of them.
        """
        lists = (after_callbacks, async_after_callbacks, exception_callbacks)
        if not isinstance(conn.conn, Connection):
            # None of the pool's, but one to a standby: whoever made it sees to it.
            return self._transaction(conn, desc, *lists, func, *args, **kwargs)
        if self.is_closed(conn):
            # Who fetches events goes on with a connection that was cut off (``_do_fetch``).
            self._renew(conn.conn, self._database.engine.default_isolation_level, False)
        autocommit, level = conn.autocommit, conn.isolation_level
        done = False

        def noted(txn: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal done
            # Synapse itself runs it again, for a deadlock.
            done = False
            result = func(txn, *args, **kwargs)
            done = True
            return result

        attempt = 1
        while True:
            try:
                if attempt > 1:
                    self._renew(conn.conn, level, autocommit)
                self._began[self._pool.threadID()] = time.monotonic()
                return self._transaction(conn, desc, *lists, noted, *args, **kwargs)
            except ConnectionLost:
                # Once it is done what is left is its COMMIT.
                unsure = done and not autocommit and desc not in READS
                if unsure or attempt == ATTEMPTS:
                    raise
                self._logger.info("running %s again: it was cut off", desc)
                attempt += 1
            finally:
                self._began.pop(self._pool.threadID(), None)

    def _renew(self, conn: Any, level: int, autocommit: bool) -> None:
        """Another connection for one that has ended.

        :raises ConnectionLost: it was cut off at once.
        """
        known = self._pool.connections.get(self._pool.threadID())
        if known is not None and known is conn._connection:
            self._pool.disconnect(known)
        conn._connection = self._pool.connect()
        try:
            conn.set_session(isolation_level=level, autocommit=autocommit)
        except self._database.engine.module.OperationalError:
            self._pool.disconnect(conn._connection)
            raise ConnectionLost from None

    def _watch(self) -> None:
        """Cut off who waits for a server in whose place there is another one, until the end."""
        pause = ROUND_SECONDS
        while not self._pool.threadpool.joined:
            time.sleep(pause)
            try:
                pause = self._round(time.monotonic())
            except Exception:
                # It must not end: nobody would see that it is gone.
                self._logger.exception("a round of the watch over silent servers")

    def _round(self, now: float) -> float:
        """One look; the pause until the next."""
        silent: dict[Server, list[Server]] = {}
        begun = {
            thread: at for thread, at in list(self._began.items()) if now >= at + self._silent
        }
        for thread in begun:
            if row := self._made.get(thread):
                silent[row[1]] = row[2]
        for server, others in silent.items():
            if others and self._takes_writes(others):
                self._logger.info("another server than %s:%s takes writes", *server)
                for made, at, _ in list(self._made.values()):
                    if at == server:
                        cut(made)
        at_work = begun and now >= max(begun.values()) + LONG_SECONDS
        return LONG_ROUND_SECONDS if at_work else ROUND_SECONDS

    def _takes_writes(self, found: list[Server]) -> bool:
        hosts, ports = (",".join(words) for words in zip(*found, strict=True))
        target = {**self._pool.connkw, "host": hosts, "port": ports}
        try:
            self._pool.dbapi.connect(*self._pool.connargs, **target).close()
        except self._database.engine.module.OperationalError:
            return False
        return True


def servers(words: Mapping[str, str], host: str, port: int) -> tuple[Server, list[Server]]:
    """The server of a connection, and the others that it might have been to.

    :param words: what libpq was told, or found out (``PQconninfo``).
    :param host, port: which one it took (``PQhost``, ``PQport``).
    """
    hosts = words.get("host", "").split(",")
    ports = words.get("port", "").split(",")
    server = (host, str(port))
    if len(hosts) == 1:
        return server, []
    # One port may be said for all of them.
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return server, [row for row in zip(hosts, ports, strict=True) if row != server]


def cut(conn: Any) -> None:
    """Wake the thread that waits for an answer: it gets an error at once."""
    with contextlib.suppress(psycopg2.Error, OSError):
        half = socket.socket(fileno=os.dup(conn.fileno()))
        try:
            half.shutdown(socket.SHUT_RDWR)
        finally:
            half.close()


def has_ended(conn: Any) -> bool:
    """Whether there is something to be read on a connection that nobody has asked anything.

    That is its end; or a notice of the server's, for which a new connection is a small price.
    """
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))
