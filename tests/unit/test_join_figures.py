"""The soak of joins: its order, its figures, its table, and that it can say no."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import salt.cache
import salt.config
from saltworks import bank, tree

from tests.lab import join_figures, workers
from tests.lab.join_figures import AGAIN, INVITED, Join, Move

MACHINES = ("sync-1", "sync-2", "sender-1", "writer-1")
STAMPS = {"admitted": 100.0, "begun": 101.0, "synced": 103.5, "served": 110.0}
FLOOR = {"minion": 3.0, "state": 1.0}


@pytest.mark.parametrize("seed", range(20))
def test_so_many_join_each_leaves_and_the_order_is_the_seed_s(seed: int) -> None:
    found = join_figures.moves(MACHINES, 20, random.Random(seed))
    assert found == join_figures.moves(MACHINES, 20, random.Random(seed))
    inside: set[str] = set()
    for move in found:
        assert move.joins is (move.machine not in inside)
        inside ^= {move.machine}
    assert inside == set()
    assert sum(move.joins for move in found) == 20
    assert {move.machine for move in found} == set(MACHINES)


def test_another_seed_is_another_order() -> None:
    orders = [join_figures.moves(MACHINES, 20, random.Random(seed)) for seed in range(5)]
    assert len({tuple(order) for order in orders}) == 5
    assert join_figures.moves(("a",), 1, random.Random(0)) == [Move("a", True), Move("a", False)]


def test_a_join_is_counted_from_the_minion_s_start() -> None:
    found = join_figures.joined("sync-1", AGAIN, {"stamps": STAMPS}, 97.5, 2.0)
    assert found.phases == {"admitted": 2.5, "begun": 1.0, "synced": 2.5, "served": 6.5}
    assert (found.total, found.sort) == (12.5, "generic")
    # The registry's whole seconds may lie before the start.
    early = join_figures.joined("writer-1", INVITED, {"stamps": STAMPS}, 100.4, 2.0)
    assert (early.phases["admitted"], early.sort) == (0.0, "stream writer")


def test_synapse_s_own_start_is_its_slowest_process_s() -> None:
    shown = (
        "ExecMainStartTimestampMonotonic=1000000\nActiveEnterTimestampMonotonic=3500000\n\n"
        "ActiveEnterTimestampMonotonic=4000000\nExecMainStartTimestampMonotonic=1000000\n"
    )
    assert join_figures.own_start(shown) == 3.0


def joins_of(**totals: float) -> list[Join]:
    """Joins of machines that come again."""
    names = [name.replace("_", "-") for name in totals]
    phases = {"admitted": 1.0, "served": 2.0}
    return [
        Join(name, AGAIN, phases, total, 4.0)
        for name, total in zip(names, totals.values(), strict=True)
    ]


def test_what_is_bound_are_generic_machines_that_come_again() -> None:
    rows = joins_of(sync_1=10, sync_2=20, sender_1=24, writer_1=70)
    rows.append(Join("sync-1", INVITED, {"admitted": 9.0, "healthy": 3.0}, 90, 4.0))
    kept = join_figures.report(rows, FLOOR, [5, 7])
    assert (kept["total_seconds"], kept["joins"]) == (20, 3)
    assert kept["phases"] == {"admitted": 1.0, "served": 2.0}
    assert kept["above_the_floors_times"] == 1.5
    assert kept["leave_seconds"] == 6
    assert join_figures.problems(kept) == []
    table = join_figures.table(rows, kept)
    assert {len(row) for row in table} == {len(join_figures.HEAD)}
    assert [row[0] for row in table[5:]] == [
        "median, generic", "median, generic", "median, stream writer", "Salt's floor",
        "median, leave",
    ]  # fmt: skip
    assert table[0][-3:] == ["10.0", "4.0", "0.2"]


@pytest.mark.parametrize(("total", "said"), [(31.0, 2), (25.0, 1), (24.0, 0)])
def test_a_join_that_takes_too_long_is_told(total: float, said: int) -> None:
    kept = join_figures.report(joins_of(sync_1=total), FLOOR, [1])
    assert len(join_figures.problems(kept)) == said


def test_records_are_read_as_runners_write_them(tmp_path: Path) -> None:
    opts: Any = dict(salt.config.DEFAULT_MASTER_OPTS)
    assert workers.record(tmp_path, "registry") == {}
    store = salt.cache.Cache(
        opts, cachedir=str(tmp_path / tree.RECORDS.lstrip("/")), driver="localfs"
    )
    bank.write(store, "registry", {"sync-1": {"state": "ready"}})
    assert workers.record(tmp_path, "registry") == {"sync-1": {"state": "ready"}}
