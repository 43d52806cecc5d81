"""psycopg2 connections that the watchdog can cut, and the cursor through which Synapse reads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions as pg

from .errors import Fallback, Refused

if TYPE_CHECKING:
    from .attempt import Attempt

#: The very libpq that psycopg2 uses. PyDLL keeps the GIL: sending some bytes does not wait.
_LIBPQ = ctypes.PyDLL(psycopg2._psycopg.__file__)
_LIBPQ.PQsendQuery.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_LIBPQ.PQsendQuery.restype = ctypes.c_int


class Connection(pg.connection):
    """One that says since when it waits for an answer.

    :ivar sent: when the last question was sent, by ``time.monotonic()``; None if it is answered.
    :ivar timeline: of the primary that it leads to; it cannot change under a live connection.
    """

    sent: float | None = None
    timeline = 0

    def tell(self, sql: str) -> Any:
        """A statement of the module's own; the cursor with its answer."""
        cursor = pg.connection.cursor(self, cursor_factory=pg.cursor)
        self.sent = time.monotonic()
        try:
            cursor.execute(sql)
        finally:
            self.sent = None
        return cursor

    def ask(self, sql: str) -> tuple[Any, ...]:
        """The one row that a question of the module's own has."""
        row: tuple[Any, ...] = self.tell(sql).fetchone()
        return row

    def cut(self) -> None:
        """Wake the thread that waits for an answer: it gets an error at once. For any thread."""
        with contextlib.suppress(psycopg2.Error, OSError):
            half = socket.socket(fileno=os.dup(self.fileno()))
            try:
                half.shutdown(socket.SHUT_RDWR)
            finally:
                half.close()


class StandbyConnection(Connection):
    """One to a standby, which one thread has at a time.

    What it knows dies with it: after a crash a standby may serve again at a lower position.

    :ivar generation: the standby's, when it was made.
    :ivar known: timeline and LSN that this standby was seen to have replayed.
    :ivar attempt: the interaction that it runs; None for the module's own questions.
    :ivar open: whether a transaction was begun for it.
    """

    generation = 0
    open = False
    known: tuple[int, int] = (0, -1)
    attempt: Attempt | None = None

    def end(self) -> None:
        """Send ROLLBACK and do not wait: libpq reads its answer before it sends the next question.

        :raises psycopg2.OperationalError: the connection is gone.
        """
        if self.closed:
            raise psycopg2.OperationalError("the connection to the standby is closed")
        if not self.open:
            return
        self.open = False
        if not _LIBPQ.PQsendQuery(self.pgconn_ptr, b"ROLLBACK"):
            raise psycopg2.OperationalError("the standby takes no ROLLBACK")


class StandbyCursor(pg.cursor):
    """Opens the transaction with the first statement, and notes the first error."""

    def execute(self, query: Any, vars: Any = None) -> None:
        connection: StandbyConnection = self.connection
        attempt = connection.attempt
        opening = b""
        if attempt is not None:
            attempt.check(query)
            opening = attempt.opening(connection)
        if opening:
            query, vars = opening + self.mogrify(query, vars), None
            connection.open = True
        connection.sent = time.monotonic()
        try:
            super().execute(query, vars)
        except psycopg2.Error as error:
            if attempt is not None:
                attempt.fail(error)
            raise
        finally:
            connection.sent = None
        if attempt is not None and opening:
            attempt.opened(connection)

    def executemany(self, query: Any, vars_list: Any) -> None:
        for each in vars_list:
            self.execute(query, each)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> None:
        raise self.connection.attempt.fail(Fallback("learn", learn=True))

    callproc = copy_from = copy_to = copy_expert = _refuse


def connect(
    args: dict[str, Any],
    factory: type[Connection],
    hold: Callable[[Any], None],
    cursor: type[pg.cursor] = pg.cursor,
) -> Any:
    """A connection in autocommit, straight to a server.

    :param hold: gets it before anything is asked, so that the watchdog can cut it.
    :raises psycopg2.Error: it does not come.
    :raises Refused: a pooler answers: what one session is told must hold for all its statements.
    """
    made = psycopg2.connect(**args, connection_factory=factory, cursor_factory=cursor)
    hold(made)
    try:
        made.autocommit = True
        # Two transactions: a pooler of transactions may answer each from another server process.
        pids = {made.ask("SELECT pg_backend_pid()")[0] for _ in range(2)}
        if pids != {made.info.backend_pid}:
            raise Refused(
                f"{made.info.host}:{made.info.port} is a pooler (libpq was told process "
                f"{made.info.backend_pid}, the server says {sorted(pids)}): standby reads need "
                "connections straight to PostgreSQL; name the servers' own host and port"
            )
    except BaseException:
        made.close()
        raise
    return made
