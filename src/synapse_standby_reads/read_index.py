"""Where the primary is: one connection of the module's own, asked for all who wait at once."""

from __future__ import annotations

import contextlib
import logging
import threading

import psycopg2

from .coalesce import Coalesced
from .config import primary_args
from .connections import Connection, connect
from .errors import Fallback, Refused
from .fence import Position, position

logger = logging.getLogger(__name__)

#: Seconds the primary may take to say where it is, before its connection is cut.
PATIENCE = 1.0

#: Seconds between two looks at it, and two tries to reach it, which no request waits for.
AGAIN = 1.0

_WHO = (
    "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int,"
    " system_identifier FROM pg_control_system()"
)
#: Flushed, not written or inserted: with synchronous_commit=on a commit is flushed before it is
#: visible or acknowledged, and what is flushed is sent to standbys at once.
_PREPARE = "PREPARE whereabouts AS SELECT pg_current_wal_flush_lsn(), pg_current_snapshot()"
#: Prepared, and in the server's own words, it costs the primary a third less.
_WHERE = "EXECUTE whereabouts"


class ReadIndex:
    """Follows the primary wherever Synapse's own arguments lead.

    :param own: Synapse's ``database.args``.
    :ivar connection: to the primary; None while there is none.
    :ivar timeline: the primary's, when it was last reached.
    :ivar system: its system identifier.
    :ivar fetches: how often the primary was asked.
    """

    def __init__(self, own: dict[str, object]) -> None:
        self._args = primary_args(own)
        self._coalesced = Coalesced(self._fetch, 2 * PATIENCE)
        self._wanted = threading.Event()
        self._ended = False
        self.connection: Connection | None = None
        self.timeline = self.system = 0
        self.fetches = 0
        self._said = ""
        self._held: Connection | None = None
        self._thread = threading.Thread(
            target=self._keep, name="standby-reads-primary", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended = True
        self._wanted.set()
        self._thread.join(10)
        if self.connection is not None:
            self.connection.close()

    def get(self) -> Position:
        """Where the primary is, asked after this call.

        :raises Fallback: it does not say.
        """
        if self.connection is None:
            raise Fallback("barrier")
        try:
            return self._coalesced.get()
        except (psycopg2.Error, TimeoutError, OSError):
            raise Fallback("barrier") from None

    def patrol(self, now: float) -> None:
        """Cut the connection if the primary has been silent too long; for the watchdog."""
        held = self._held
        if held is not None and held.sent is not None and now - held.sent > PATIENCE:
            held.cut()

    def _hold(self, made: Connection) -> None:
        self._held = made

    def _fetch(self) -> Position:
        connection = self.connection
        if connection is None:
            raise Fallback("barrier")
        try:
            lsn, snapshot = connection.ask(_WHERE)
        except psycopg2.Error:
            self.connection = None
            connection.close()
            self._wanted.set()
            raise
        self.fetches += 1
        return position(lsn, connection.timeline, snapshot)

    def _keep(self) -> None:
        """Connect whenever there is no connection, and see whether the one that there is lives.

        While no standby is ready nobody else asks, and none becomes so before it is known who is
        the primary now.
        """
        while not self._ended:
            if self.connection is None:
                self._connect()
            else:
                with contextlib.suppress(Fallback):
                    self.get()
            self._wanted.wait(AGAIN)
            self._wanted.clear()

    def _connect(self) -> None:
        try:
            made = connect(self._args, Connection, self._hold)
            made.timeline, self.system = made.ask(_WHO)
            made.tell(_PREPARE)
        except (psycopg2.Error, Refused) as error:
            # A standby that Synapse's arguments lead to says that recovery is in progress.
            self._say(f"no primary, all reads go to it: {' '.join(str(error).split())}")
        else:
            self.timeline = made.timeline
            self.connection = made
            self._say(f"primary {made.info.host}:{made.info.port} on timeline {self.timeline}")

    def _say(self, what: str) -> None:
        if what != self._said:
            logger.info("standby reads: %s", what)
        self._said = what
