"""The database's share of M3's window at two sizes, against dump and restore, in one run.

What comes on top of it, Synapse's stop and start, is the same for any size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench import results
from tests.process import postgres
from tests.process.test_pgstandby import Pair, paired

pytestmark = pytest.mark.bench

GIB = 1 << 30
SIZES = (0.6, 2.0)
#: The window at the larger size may be this much of the one at the smaller.
RATIO = 1.3
WINDOWS = 3


def padded(pair: Pair, size: float) -> None:
    """Events under made-up ids until the database has that many GiB."""
    pair.sql(
        pair.old,
        "ALTER TABLE event_json ALTER json SET STORAGE EXTERNAL;",
    )
    while (missing := size * GIB - _bytes(pair)) > 0:
        rows = max(1000, int(min(missing, GIB / 4) / 1100))
        pair.sql(
            pair.old,
            "INSERT INTO event_json SELECT '$' || gen_random_uuid()::text, "
            "(SELECT string_agg(md5(n || ' ' || k), '') FROM generate_series(1, 28) k) "
            f"FROM generate_series(1, {rows}) n;",
        )
    pair.sql(pair.old, "VACUUM ANALYZE;")


def _bytes(pair: Pair) -> int:
    return int(pair.sql(pair.old, "SELECT pg_database_size('synapse')"))


def timed(act: Callable[[], Any]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def window(pair: Pair) -> float:
    """Seconds from the old one's fence to the new one's being the primary, with all checks."""
    pair.copy()
    for standby, at in ((False, pair.old), (True, pair.new)):
        pair.call("pgstandby.ready", at, standby)
    seconds = timed(lambda: pair.switch(pair.old, pair.new))
    pair.call("pgcontent.release", pair.new)
    pair.call("pgstandby.unfence", pair.old)
    return seconds


def dumped(pair: Pair) -> float:
    """Seconds of dump and restore, two at a time."""
    at, folder = pair.old, f"{pair.old['top']}/run/dump"
    how = ["-h", at["socket"], "-p", str(at["port"]), "-j", "2"]

    def both() -> None:
        dump = ["-Fd", "-Z1", "-f", folder, "synapse"]
        postgres.as_user(at, f"{at['bindir']}/pg_dump", *how, *dump)
        restore = ["-C", "-d", "postgres", folder]
        postgres.psql(at, "ALTER DATABASE synapse RENAME TO before;")
        postgres.as_user(at, f"{at['bindir']}/pg_restore", *how, *restore)

    return timed(both)


def test_the_window_does_not_grow_with_the_data() -> None:
    rows, windows = [], []
    for size in SIZES:
        with paired(postgres.loaded(), where="/var/tmp") as pair:
            padded(pair, size)
            copied = timed(pair.copy)
            held = statistics.median(window(pair) for _ in range(WINDOWS))
            whole = dumped(pair)
        windows.append(held)
        cells = [f"{size} GiB", f"{copied:.1f}", f"{held:.2f}", f"{whole:.1f}"]
        rows.append([*cells, f"{whole / held:.0f}"])
    head = ["database", "copied live in, s", "window, s", "dump and restore, s", "times longer"]
    title = "The database's share of M3's window: standby promoted, against dump and restore"
    path: Path = results.show("database-window", title, head, rows)
    assert windows[1] / windows[0] <= RATIO, path.read_text()
