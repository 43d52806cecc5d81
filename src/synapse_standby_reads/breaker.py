"""When a standby is left alone: after it failed, and while it lags. Times in seconds."""

from __future__ import annotations

#: For so long nobody asks a standby that has failed.
OPEN_SECONDS = 2.0

#: So many late answers in a row, and for so long it is left alone.
LATE, PAUSE_SECONDS = 3, 0.25

CLOSED, HALF_OPEN, OPEN = 0, 1, 2


class Breaker:
    """Open after a failure; then one interaction at a time tries, until one succeeds.

    Its user holds the lock.
    """

    def __init__(self) -> None:
        self._open_until = 0.0
        self._failed = False
        self._probing = False

    def state(self, now: float) -> int:
        """CLOSED, HALF_OPEN or OPEN."""
        if not self._failed:
            return CLOSED
        return OPEN if now < self._open_until else HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether an interaction may go there; if half open, it is the one that tries."""
        state = self.state(now)
        if state == HALF_OPEN and not self._probing:
            self._probing = True
            return True
        return state == CLOSED

    def succeeded(self) -> None:
        self._failed = self._probing = False

    def failed(self, now: float) -> None:
        self._failed, self._probing = True, False
        self._open_until = now + OPEN_SECONDS

    def abandoned(self) -> None:
        """The one that tried has ended without a word about the server."""
        self._probing = False


class LagPause:
    """A standby that is late several times in a row rests for a moment."""

    def __init__(self) -> None:
        self._late = 0
        self._until = 0.0

    def paused(self, now: float) -> bool:
        return now < self._until

    def late(self, now: float) -> None:
        self._late += 1
        if self._late >= LATE:
            self._until = now + PAUSE_SECONDS

    def in_time(self) -> None:
        self._late = 0
