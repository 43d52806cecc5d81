"""One interaction on one standby: opened with its first statement, believed after the fence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2

from . import fence
from .connections import StandbyConnection
from .errors import Fallback
from .fence import Position
from .writers import WRITE_CODES, WRONG_TEXT

#: SQLSTATEs of a read that stood in the way of replay, or was cancelled for another reason.
CONFLICTS = frozenset({"40001", "40P01", "57014"})

_OURS = {fence.TIMELINE: "timeline", fence.LATE: "lag", fence.AHEAD: "ahead"}


class Attempt:
    """What is known of it while it runs.

    :param index: where the primary is, asked when there is something to read.
    :param wait_ms: as in the configuration.
    :ivar failed: the first error, even one that the function has swallowed.
    """

    def __init__(self, index: Callable[[], Position], wait_ms: int) -> None:
        self._index = index
        self._wait_ms = wait_ms
        self._at: Position | None = None
        self._suspects: tuple[int, ...] = ()
        self.failed: Exception | None = None

    def fail(self, error: Exception) -> Exception:
        """Note an error, if it is the first."""
        self.failed = self.failed or error
        return error

    def check(self, query: Any) -> None:
        """Nothing is asked after an error, nor what a standby would answer wrongly.

        :raises Exception: the first error.
        """
        if self.failed is not None:
            raise self.failed
        if isinstance(query, bytes):
            # Made of many values, which are other people's words: nothing is learnt from them.
            if WRONG_TEXT.search(query.decode("utf-8", "replace")):
                raise self.fail(Fallback("sql"))
        elif WRONG_TEXT.search(str(query)):
            raise self.fail(Fallback("learn", learn=True))

    def opening(self, connection: StandbyConnection) -> bytes:
        """What goes before the first statement, in one message with it; later nothing.

        :raises Fallback: the primary does not say where it is.
        """
        if self._at is not None:
            return b""
        try:
            at = self._at = self._index()
        except Fallback as error:
            self.fail(error)
            raise
        sql = fence.begin_sql(at)
        timeline, lsn = connection.known
        if timeline != at.timeline or lsn < at.lsn:
            sql = fence.wait_sql(at, self._wait_ms) + sql
        connection.notices.clear()
        return sql.encode()

    def opened(self, connection: StandbyConnection) -> None:
        """The first statement was answered.

        :raises Fallback: without the word that the fence needs.
        """
        assert self._at is not None
        found = fence.suspects(connection.notices)
        if found is None:
            raise self.fail(Fallback("sql"))
        self._suspects = found
        if connection.known[0] != self._at.timeline or connection.known[1] < self._at.lsn:
            connection.known = (self._at.timeline, self._at.lsn)

    @property
    def asked(self) -> bool:
        """Whether the standby was asked anything."""
        return self._at is not None

    def verdict(self) -> None:
        """What the first error, if there was one, means.

        :raises Fallback: it means the primary.
        """
        if self.failed is not None:
            raise means(self.failed)

    def believe(self) -> str:
        """The fence, after the read: ``free`` or ``asked``.

        :raises Fallback: something read is not finished on the primary.
        """
        if not self._suspects:
            return "free"
        if fence.unfinished(self._suspects, self._index()):
            raise Fallback("ahead")
        return "asked"


def means(error: Exception) -> Fallback:
    """The way on after an error on a standby; always the primary.

    Whether the connection has gone with it says the outcome ``connection``.
    """
    if isinstance(error, Fallback):
        return error
    code = error.pgcode if isinstance(error, psycopg2.Error) else None
    if code in _OURS:
        return Fallback(_OURS[code])
    if code in WRITE_CODES:
        return Fallback("learn", learn=True)
    if code in CONFLICTS:
        return Fallback("conflict")
    if code is None or code[:2] in ("08", "57"):
        return Fallback("connection")
    return Fallback("sql")
