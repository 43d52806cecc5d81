"""Synapse waits for a database whose primary changes, instead of answering each request with 500.

As it comes, each of its pooled connections to a primary that is gone answers one request with an
error, and so does each request while there is no primary. With this module

- an idle connection that the server has ended is replaced before it is used;
- a transaction that was cut off before its COMMIT was sent is run again: nothing of it was done.
  One whose COMMIT got no answer may have been done, and fails as ever. What runs without a
  transaction is run again too, as Synapse says it may be (``runInteraction``, ``db_autocommit``);
- a new connection is tried for as long as a failover takes;
- nothing begins on a server that is not known to be the primary (:class:`Primary`), and what waits
  for one that says nothing is cut off as soon as another one is. TCP notices neither: of a machine
  whose processes stand still the kernel goes on to answer, and when they go on, what was asked
  meanwhile is answered out of the past.

Who waits are the threads of Synapse's database pool, which have nothing else to do then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

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
#: How often the primary is asked whether it is there, in seconds, and for how long it may think.
ASK_SECONDS, SILENT_SECONDS = 1.0, 3.0
#: For how long after a question that it answered a server counts as the primary, in seconds. No
#: other one is promoted sooner: Patroni's key lives for 12 (``ttl``) and is at most 10 old when a
#: machine stands still (``loop_wait + 2 * retry_timeout``), and who promotes asks for 2 first.
LEASE_SECONDS = 4.0
#: Between two looks for a silent server, in seconds.
LOOK_SECONDS = 0.25
#: Answered by nobody but a primary whose commits are acknowledged: a record in its WAL, which the
#: synchronous standby, where there is one, must have (PostgreSQL: ``pg_logical_emit_message``).
PROOF = "SELECT pg_logical_emit_message(true, 'saltworks', '')"
#: A session that waits for the standby does not notice that nobody waits for it any more.
END_OLD = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user"
    " AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
)
#: Interactions that only read, so that they may be run again though their COMMIT got no answer. For
#: one ``do_fetch`` all wait who want an event that is in no cache.
READS = frozenset({"do_fetch"})
#: What no waiting mends, in libpq's words: there is no code where there is no connection yet.
HOPELESS = ("authentication failed", "no pg_hba.conf entry")

Callbacks = list[Any]
#: Host and port, as libpq has them.
Server = tuple[str, int]


class Patience:
    """The module; it has no configuration."""

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        for database in api._hs.get_datastores().databases:
            if isinstance(database.engine, PostgresEngine):
                PatientPool(database).start()

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        return config


class Line:
    """A connection, its server, and the means to wake who waits for an answer on it.

    Made by the thread that has the connection: libpq's own are of one thread at a time.
    """

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        self.server: Server = (conn.info.host, conn.info.port)
        # Of its own: libpq may close its descriptor at any time, and another one get the number.
        self._socket = socket.socket(fileno=os.dup(conn.fileno()))

    def cut(self) -> None:
        """Who waits gets an error at once. For any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Primary:
    """Which server is the primary, by a connection that does nothing but ask.

    :param module: psycopg2, of which a machine that has no PostgreSQL need not know.
    :param connect: makes a connection to whoever takes writes; ``module.Error``: there is nobody.
    :param found: gets the connection once its server is known, before anybody else is told.
    :param lost: called while there is none.
    :param silent: see :data:`SILENT_SECONDS`.
    """

    def __init__(
        self,
        module: Any,
        connect: Callable[[], Any],
        found: Callable[[Line], None],
        lost: Callable[[], None],
        silent: float,
    ) -> None:
        self._module = module
        self._connect = connect
        self._found = found
        self._lost = lost
        self._silent = silent
        self._changed = threading.Condition()
        #: The primary, and when it was asked last what it answered, by ``time.monotonic()``.
        self._known: tuple[Server, float] | None = None
        self._line: Line | None = None
        #: Since when, and of whom, an answer is waited for.
        self._asked: tuple[float, Line] | None = None
        self._doubted = False
        #: Why there is none, in libpq's words; empty: it is not known yet.
        self.said = ""
        self._logger = logging.getLogger(__name__)

    def start(self) -> None:
        """Begin to ask; the threads end with the process."""
        for work in (self._ask_on, self._look_on):
            threading.Thread(target=work, name="saltworks-primary", daemon=True).start()

    def get(self) -> Server | None:
        """The primary; None while nobody can be sure."""
        known = self._known
        if known is None or time.monotonic() >= known[1] + LEASE_SECONDS:
            return None
        return known[0]

    def wait(self) -> None:
        """Until there is one, or for a moment."""
        with self._changed:
            self._changed.wait_for(self.get, PAUSE_SECONDS)

    def doubt(self) -> None:
        """Ask it now: somebody saw another one."""
        with self._changed:
            self._doubted = True
            self._changed.notify_all()

    def _ask_on(self) -> None:
        again = PAUSE_SECONDS
        while True:
            try:
                self._step()
                pause, again = ASK_SECONDS, PAUSE_SECONDS
            except Exception as error:
                if not isinstance(error, self._module.Error):
                    # It must not end: nobody would see that it is gone.
                    self._logger.exception("which server is the primary")
                self._lose(" ".join(str(error).split()))
                pause, again = again, min(2 * again, LONGEST_PAUSE_SECONDS)
            with self._changed:
                self._changed.wait_for(lambda: self._doubted, pause)
                self._doubted = False

    def _step(self) -> None:
        """Ask who is the primary, or find who is.

        :raises module.Error: nobody is for now.
        """
        if self._line is not None and self.get() is not None:
            at = self._ask(self._line, "SELECT 1")
            self._known = self._line.server, at
            return
        # Who did not ask in time may not believe the old one either, which has stood still as well.
        self._lose(self.said)
        self._line = line = Line(self._connect())
        self._ask(line, END_OLD)
        at = self._ask(line, PROOF)
        self._found(line)
        with self._changed:
            self._known, self.said = (line.server, at), ""
            self._changed.notify_all()

    def _ask(self, line: Line, question: str) -> float:
        """When it was asked.

        :raises module.Error: there was no answer, or none in time.
        """
        at = time.monotonic()
        self._asked = at, line
        try:
            line.conn.autocommit = True
            with line.conn.cursor() as cursor:
                cursor.execute(question)
        finally:
            self._asked = None
        if time.monotonic() > at + LEASE_SECONDS:
            raise self._module.OperationalError("the primary answered too late")
        return at

    def _lose(self, said: str) -> None:
        with self._changed:
            self._known, self.said = None, said
        if self._line is not None:
            with contextlib.suppress(self._module.Error):
                self._line.conn.close()
            self._line = None
        self._lost()

    def _look_on(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            asked = self._asked
            if asked is not None and time.monotonic() > asked[0] + self._silent:
                asked[1].cut()


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
        self._words = dict(self._pool.connkw)
        self._connect = self._pool.connect
        self._open = self._pool.openfun
        self._closed = database.engine.is_connection_closed
        self._set_autocommit = database.engine.attempt_to_set_autocommit
        self._transaction = database.new_transaction
        self._lock = threading.Lock()
        #: Each thread's connection.
        self._lines: dict[int, Line] = {}
        self._primary = Primary(
            database.engine.module, self._any, self._take, self._cut_at_stop, silent
        )
        #: When the outage that lasts began, by ``time.monotonic()``; None while there is none.
        self._since: float | None = None
        # Only now: Synapse may silence the loggers that were there when it set up its log.
        self._logger = logging.getLogger(__name__)

    def start(self) -> None:
        """Begin to wait."""
        self._pool.connect = self.connect
        self._pool.openfun = self.opened
        engine: Any = self._database.engine
        engine.is_connection_closed = self.is_closed
        engine.attempt_to_set_autocommit = self.set_autocommit
        self._database.new_transaction = self.new_transaction
        self._primary.start()

    def connect(self) -> Any:
        """A connection of this thread's to the primary, as soon as there is one.

        All threads wait for the same outage: what stands in the queue until it has lasted for too
        long tries once, and fails.

        :raises OperationalError: there was none in time, or the process stops; the last try's.
        """
        thread = self._pool.threadID()
        if thread in self._pool.connections:
            # It has one, whose state this says nothing of.
            return self._connect()
        end, pause = time.monotonic() + self._seconds, PAUSE_SECONDS
        while True:
            try:
                self._certain()
                made = self._connect()
            except self._database.engine.module.OperationalError as error:
                said = " ".join(str(error).split())
                if not self._waits(said) or time.monotonic() > end:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._over()
                return made

    def opened(self, conn: Any) -> None:
        """Make a new connection ready, if it leads to the primary.

        :raises OperationalError: it leads elsewhere, or nobody is sure any more.
        """
        # Before anything is asked on it, so that it can be cut.
        self._lines[self._pool.threadID()] = line = Line(conn)
        self._open(conn)
        server = self._primary.get()
        if line.server != server:
            conn.close()
            self._primary.doubt()
            host, port = line.server
            said = f"a new connection leads to {host}:{port}, and the primary is {server}"
            raise self._database.engine.module.OperationalError(said)

    def _any(self) -> Any:
        """A connection that is none of the pool's, to any server that takes writes."""
        # By its name this process finds its own sessions again, see END_OLD.
        name = f"saltworks_patience {socket.gethostname()[:24]} {os.getpid()} {id(self) % 10**6}"
        words = {**self._words, "application_name": name}
        return self._pool.dbapi.connect(*self._pool.connargs, **words)

    def _certain(self) -> None:
        """Wait until somebody is sure of the primary.

        :raises OperationalError: nobody was in time, or the process stops.
        """
        begun = time.monotonic()
        while self._primary.get() is None:
            self._primary.wait()
            said = self._primary.said
            # For as long as the answer to the very first question may take nothing is wrong.
            if not said and time.monotonic() < begun + self._silent:
                continue
            said = said or "the primary says nothing"
            late = time.monotonic() > begun + self._seconds
            if self._primary.get() is None and (not self._waits(said) or late):
                raise self._database.engine.module.OperationalError(said)

    def _take(self, found: Line) -> None:
        """From now on connections are to this server, and whoever waits for another begins again.

        Straight to it: libpq would wait for each dead one that stands before it.
        """
        host, port = found.server
        if "hostaddr" not in found.conn.info.dsn_parameters:
            self._pool.connkw = {**self._words, "host": host, "port": port}
        for line in list(self._lines.values()):
            if line.server != found.server:
                self._logger.info("%s:%s is the primary, and not %s:%s", host, port, *line.server)
                line.cut()
        self._over()

    def _cut_at_stop(self) -> None:
        """A process that stops waits for its threads, so none may wait for the database."""
        if self._pool.threadpool.joined:
            for line in list(self._lines.values()):
                line.cut()

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
        """Whether a connection that nobody uses has ended, or leads to another than the primary."""
        if self._closed(conn) or has_ended(conn):
            return True
        server, line = self._primary.get(), self._lines.get(self._pool.threadID())
        return server is not None and (line is None or line.server != server)

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
        try:
            self._certain()
        except self._database.engine.module.OperationalError:
            # Whoever called this will ROLLBACK, and would wait for the silent server.
            if line := self._lines.get(self._pool.threadID()):
                line.cut()
            raise
        level = conn.isolation_level or self._database.engine.default_isolation_level
        # Who fetches events goes on with a connection that was cut off (``_do_fetch``).
        renew, autocommit = self.is_closed(conn), conn.autocommit
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
                if renew:
                    self._renew(conn.conn, level, autocommit)
                return self._transaction(conn, desc, *lists, noted, *args, **kwargs)
            except ConnectionLost:
                # Once it is done what is left is its COMMIT.
                unsure = done and not autocommit and desc not in READS
                if unsure or attempt == ATTEMPTS:
                    raise
                self._logger.info("running %s again: it was cut off", desc)
                attempt, renew = attempt + 1, True

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


def has_ended(conn: Any) -> bool:
    """Whether there is something to be read on a connection that nobody has asked anything.

    That is its end; or a notice of the server's, for which a new connection is a small price.
    """
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))
