"""A thread that never waits for a server, and cuts the connections of those that do in vain."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

logger = logging.getLogger(__name__)

TICK = 0.05


class Patrolled(Protocol):
    """Somebody with connections."""

    def patrol(self, now: float) -> None: ...


class Watchdog:
    """:param among: who is to be looked after, asked at each round."""

    def __init__(self, among: Callable[[], Iterable[Patrolled]]) -> None:
        self._among = among
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="standby-reads-watchdog", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.wait(TICK):
            for each in self._among():
                try:
                    each.patrol(time.monotonic())
                except Exception:
                    logger.exception("standby reads: a round of the watchdog")
