"""One standby: what it is just now, and its connections, all made off the path of requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2

from .breaker import Breaker, LagPause
from .config import name_of, standby_args
from .connections import Connection, StandbyConnection, StandbyCursor, connect
from .errors import Refused
from .read_index import ReadIndex

logger = logging.getLogger(__name__)

#: Seconds between two looks at what a server is; at once when somebody doubts it.
LOOK_SECONDS = 1.0

#: Seconds beyond the barrier's wait in which a living standby answers somebody.
SILENCE = 0.25

_WHAT = (
    "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),"
    " (SELECT received_tli FROM pg_stat_wal_receiver)"
)

READY = "ready"


def what_it_is(
    recovery: bool, system: int, timeline: int | None, primary: ReadIndex
) -> str:
    """READY, or why a server is not to be read from.

    :param timeline: that it receives; None if it receives none.
    """
    if not primary.system:
        return "no primary to compare with"
    if system != primary.system:
        return "another cluster"
    if not recovery:
        return "primary"
    if timeline is None:
        return "receives no WAL"
    return READY if timeline == primary.timeline else "another timeline"


class Standby:
    """A server of the list.

    :param entry: the list's.
    :param own: Synapse's ``database.args``.
    :param primary: to compare with.
    :param prepare: makes a new connection one of Synapse's.
    :param wait_ms: as in the configuration.
    :param longest_ms: as in the configuration.
    :ivar is_: READY, or why it is not read from.
    :ivar kills: connections that the watchdog has cut.
    """

    def __init__(
        self, entry: Mapping[str, Any], own: Mapping[str, Any], primary: ReadIndex,
        prepare: Callable[[StandbyConnection], None], wait_ms: int, longest_ms: int,
    ) -> None:
        self.entry = dict(entry)
        self.name = name_of(entry)
        self.is_ = "not reached yet"
        self.kills = 0
        self.breaker = Breaker()
        self.lag = LagPause()
        self._args = standby_args(own, entry)
        self._primary = primary
        self._prepare = prepare
        self._patience = wait_ms / 1000 + SILENCE
        self._longest = longest_ms / 1000
        self._lock = threading.Lock()
        self._idle: list[StandbyConnection] = []
        self._busy: set[StandbyConnection] = set()
        self._size = 1
        self._generation = 0
        self._answered = 0.0
        self._control: Connection | None = None
        self._held: Connection | None = None
        self._look = threading.Event()
        self._ended = False
        self._thread = threading.Thread(
            target=self._keep, name=f"standby-reads-{self.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more interactions; those that run end by themselves."""
        self._ended = True
        self.is_ = "not in the list"
        self._look.set()
        self._thread.join(10)
        with self._lock:
            closing = self._forget()
        for connection in (self._control, *closing):
            if connection is not None:
                connection.close()

    @property
    def running(self) -> int:
        """Interactions that it runs."""
        return len(self._busy)

    def allows(self, now: float) -> bool:
        """Whether an interaction may go there; who is let in says how it ended."""
        if self.is_ != READY or self.lag.paused(now):
            return False
        with self._lock:
            return self.breaker.allows(now)

    def take(self) -> StandbyConnection | None:
        """A connection for one interaction, the one used last; None asks for one more."""
        with self._lock:
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection
            # As many as were ever needed at once; a database thread has one at most.
            self._size = max(self._size, len(self._busy) + 1)
            self.breaker.abandoned()
        self._look.set()
        return None

    def give(self, connection: StandbyConnection, answered: bool, late: bool) -> None:
        """Back after an interaction, with its ROLLBACK sent.

        :param answered: whether the standby was asked anything, and has answered.
        :param late: whether it was not where the primary is in time.
        """
        now = time.monotonic()
        with self._lock:
            self._busy.discard(connection)
            if not answered:
                self.breaker.abandoned()
            else:
                self._answered = now
                self.breaker.succeeded()
                if late:
                    self.lag.late(now)
                else:
                    self.lag.in_time()
            if connection.generation == self._generation and not connection.closed:
                self._idle.append(connection)
                return
        connection.close()

    def drop(self, connection: StandbyConnection) -> None:
        """It died. The first to notice opens the breaker, and no connection lives on."""
        with self._lock:
            self._busy.discard(connection)
            closing: list[StandbyConnection] = []
            if connection.generation == self._generation:
                closing = self._forget()
                self.breaker.failed(time.monotonic())
                logger.info("standby reads: %s failed; the primary serves its reads", self.name)
        for each in (connection, *closing):
            each.close()
        self._look.set()

    def _forget(self) -> list[StandbyConnection]:
        """Connections that are to be closed now; those that are busy are, when they come back."""
        self._generation += 1
        closing, self._idle = self._idle, []
        return closing

    def doubt(self) -> None:
        """It is no standby of this primary's any more, by its own word."""
        self.is_ = "being looked at"
        self._look.set()

    def breaker_state(self) -> int:
        return self.breaker.state(time.monotonic())

    def patrol(self, now: float) -> None:
        """Cut what waits for a dead server; for the watchdog.

        One that answers anybody lives, and its slow statements go on. If all are silent it is
        asked, and cut if it says nothing.
        """
        held, answered = self._held, self._answered
        if held is not None and held.sent is not None and now - held.sent > 2 * self._patience:
            held.cut()
        with self._lock:
            busy = [(each, each.sent) for each in self._busy]
        for connection, sent in busy:
            if sent is None:
                continue
            silent = now - max(sent, answered)
            if silent > 2 * self._patience or now - sent > self._longest:
                self.kills += 1
                connection.cut()
            elif silent > self._patience:
                self._look.set()

    def _keep(self) -> None:
        """Look what it is, and make the connections that are asked for."""
        said = ""
        while not self._ended:
            try:
                found = self._what()
                while found == READY and not self._ended and self._too_few():
                    self._make()
            except (psycopg2.Error, Refused) as error:
                self._control = None
                found = f"not reached: {' '.join(str(error).split())}"
            if not self._ended:
                self._become(found)
            if found != said:
                logger.info("standby reads: %s: %s", self.name, found)
            said = found
            self._look.wait(LOOK_SECONDS)
            self._look.clear()

    def _become(self, found: str) -> None:
        self.is_ = found
        if found == READY:
            return
        # Those that are idle do not outlive what it was: they may be dead when it is ready again.
        with self._lock:
            closing = self._forget() if self._idle else []
        for connection in closing:
            connection.close()

    def _what(self) -> str:
        control = self._control
        if control is None or control.closed:
            control = connect(self._args, Connection, self._hold)
            self._control = control
        self._held = control
        try:
            recovery, system, timeline = control.ask(_WHAT)
        except psycopg2.Error:
            control.close()
            raise
        self._answered = time.monotonic()
        return what_it_is(recovery, system, timeline, self._primary)

    def _too_few(self) -> bool:
        with self._lock:
            live = [each for each in self._busy if each.generation == self._generation]
            return len(self._idle) + len(live) < self._size

    def _make(self) -> None:
        generation = self._generation
        made = connect(self._args, StandbyConnection, self._hold, StandbyCursor)
        self._prepare(made)
        made.generation = generation
        with self._lock:
            self._idle.append(made)

    def _hold(self, made: Connection) -> None:
        self._held = made
