"""PostgreSQL's settings follow memory and cores, within bounds."""

from __future__ import annotations

import pytest

from tests.unit.modules.minion_modules import load

settings = load("_modules", "saltworks_pgsize").settings


def mib(value: str) -> int:
    assert value.endswith("MB")
    return int(value[:-2])


@pytest.mark.parametrize(("memory", "cores"), [(256, 1), (1024, 1), (4096, 2), (262144, 64)])
def test_all_of_it_fits_the_machine(memory: int, cores: int) -> None:
    row = settings(memory, cores)
    buffers = mib(row["shared_buffers"])
    assert buffers <= max(memory // 4, 64)
    assert buffers <= mib(row["effective_cache_size"]) <= memory
    # Every connection may sort at once.
    if mib(row["work_mem"]) > 1:
        assert buffers + mib(row["work_mem"]) * row["max_connections"] <= memory
    assert row["max_parallel_workers"] <= max(1, cores)
    assert row["max_worker_processes"] >= cores


def test_a_usual_machine() -> None:
    assert settings(4096, 2) == {
        "shared_buffers": "1024MB",
        "effective_cache_size": "3072MB",
        "maintenance_work_mem": "256MB",
        "work_mem": "7MB",
        "max_connections": 204,
        "max_wal_size": "2048MB",
        "max_worker_processes": 8,
        "max_parallel_workers": 1,
        "max_parallel_workers_per_gather": 0,
    }
