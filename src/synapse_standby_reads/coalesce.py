"""One question at a time, whose answer serves everybody who asked before it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Round(Generic[T]):
    def __init__(self) -> None:
        self.done = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None


class Coalesced(Generic[T]):
    """Leader and followers: who comes while a question is on its way waits for the next one.

    A caller never gets the answer of a question that was sent before it asked.

    :param fetch: asks; called by one thread at a time.
    :param seconds: a bound for each wait; ``fetch`` has one of its own, which is shorter.
    """

    def __init__(self, fetch: Callable[[], T], seconds: float) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._lock = threading.Lock()
        self._sent: _Round[T] | None = None
        self._next: _Round[T] | None = None

    def get(self) -> T:
        """An answer to a question that is sent after this call.

        :raises TimeoutError: after the bound.
        :raises BaseException: what ``fetch`` has raised.
        """
        with self._lock:
            before = self._sent
            if before is None:
                mine = self._sent = _Round()
                leads = True
            else:
                leads = self._next is None
                mine = self._next = self._next or _Round()
        if not leads:
            # Of the question on its way, and of the one it waits for.
            if not mine.done.wait(2 * self._seconds):
                raise TimeoutError(f"no answer within {2 * self._seconds:g} s")
        elif before is None:
            self._lead(mine)
        elif before.done.wait(self._seconds):
            with self._lock:
                self._sent, self._next = mine, None
            self._lead(mine)
        else:
            with self._lock:
                self._next = None
            mine.error = TimeoutError(f"no answer within {self._seconds:g} s")
            mine.done.set()
        if mine.error is not None:
            raise mine.error
        return mine.value  # type: ignore[return-value]

    def _lead(self, mine: _Round[T]) -> None:
        try:
            mine.value = self._fetch()
        except BaseException as error:
            mine.error = error
        finally:
            with self._lock:
                # Whoever leads the next one goes on by itself.
                if self._next is None:
                    self._sent = None
            mine.done.set()
