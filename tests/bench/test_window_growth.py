"""What M1's window does with the data, at two sizes: its mark and the fingerprint in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench import results
from tests.process import postgres, synapse_tables

pytestmark = pytest.mark.bench

#: Events of a kilobyte each.
SIZES = (100_000, 600_000)

TIMES = 5

#: Rows of the table: which are what a window waits for, beside the migration itself.
STEPS = ("fingerprint", "mark, fingerprint included", "compared with the mark")


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes; the median of some."""

    def once() -> float:
        begun = time.monotonic()
        function()
        return time.monotonic() - begun

    return statistics.median(once() for _ in range(TIMES))


def measured(events: int, folder: Path) -> tuple[float, list[float]]:
    """GiB of a database with so many events, and the seconds of each of ``STEPS``."""
    salt = postgres.loaded()
    # On the disk, as in life.
    with postgres.cluster(where="/var/tmp") as at:
        create = "CREATE DATABASE synapse ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE"
        postgres.psql(at, f"{create} template0; ALTER ROLE {at['os_user']} PASSWORD 'p';")
        filled = synapse_tables.TABLES + synapse_tables.many_events(1, events)
        postgres.psql(at, f"{filled} CHECKPOINT;", "synapse")
        size = postgres.psql(at, "SELECT pg_database_size('synapse');")
        args = {"database": "synapse", "host": "127.0.0.1", "port": at["port"]}
        args |= {"user": at["os_user"], "password": "p"}
        config = folder / f"{events}.yaml"
        config.write_text(yaml.safe_dump({"database": {"name": "psycopg2", "args": args}}))
        kept = f"{at['top']}/backup"
        salt["pgbackup.base"](kept, "synapse", at)
        there = salt["pgcluster.connection"](salt["pgcluster.locate"](at), "synapse")
        took = [
            seconds(lambda: salt["synapse_fingerprint.take"](there)),
            seconds(lambda: salt["pgbackup.mark"]("m1", kept, at)),
            seconds(lambda: salt["synapse_upgrade.lost"](str(config), kept, "m1")),
        ]
        salt["pgbackup.release"](kept, at, keep=False)
        return int(size) / (1 << 30), took


def test_the_window_at_two_sizes(tmp_path: Path) -> None:
    (small, little), (big, much) = (measured(events, tmp_path) for events in SIZES)
    rows = [
        [step, f"{first:.3f}", f"{second:.3f}", f"{second / first:.2f}"]
        for step, first, second in zip(STEPS, little, much, strict=True)
    ]
    head = ["", f"s at {small:.1f} GiB", f"s at {big:.1f} GiB", "ratio"]
    title = f"What M1's window does with the data, which is {big / small:.1f} times as big"
    results.show("window-growth", title, head, rows)
