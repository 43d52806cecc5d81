"""What may happen to a standby while the checker runs: each fault mends itself."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

from tests.process.front_door import wait_for
from tests.process.standby_servers import Servers


def paused(on: Servers, number: int) -> Callable[[], None]:
    """Replay stands still, 20 to 500 ms."""

    def fault() -> None:
        on.sql("SELECT pg_wal_replay_pause()", number)
        time.sleep(random.uniform(0.02, 0.5))
        on.sql("SELECT pg_wal_replay_resume()", number)

    return fault


@contextlib.contextmanager
def late(on: Servers, number: int, ms: int) -> Iterator[None]:
    """Replay is so many milliseconds late meanwhile."""
    on.sql(f"ALTER SYSTEM SET recovery_min_apply_delay = '{ms}ms'", number)
    on.sql("SELECT pg_reload_conf()", number)
    try:
        yield
    finally:
        on.sql("ALTER SYSTEM RESET recovery_min_apply_delay", number)
        on.sql("SELECT pg_reload_conf()", number)


def delayed(on: Servers, number: int) -> Callable[[], None]:
    """Replay is late by 5 to 200 ms for a second."""

    def fault() -> None:
        with late(on, number, random.randrange(5, 200)):
            time.sleep(1)

    return fault


def killed(on: Servers, number: int) -> Callable[[], None]:
    """All its processes are killed; it comes back."""

    def fault() -> None:
        on.kill(number)
        time.sleep(random.uniform(0, 1))
        on.start(number)

    return fault


def frozen(on: Servers, number: int) -> Callable[[], None]:
    """It stands still, 0.5 to 3 s, and nobody is told."""

    def fault() -> None:
        on.freeze(number)
        try:
            time.sleep(random.uniform(0.5, 3))
        finally:
            on.thaw()

    return fault


def switched(on: Servers) -> None:
    """The primary stops in order, the standby takes its place, and the old one follows it.

    Then they serve for two seconds.
    """
    old, new = on.primary, 1 - on.primary
    on.control(old, "-m", "fast", "stop")
    on.promote(new)
    on.follow(old, new)
    on.start(old)
    wait_for("the new standby", lambda: on.sql(
        "SELECT count(*) FROM pg_stat_wal_receiver", old) == "1", 30)
    time.sleep(2)
