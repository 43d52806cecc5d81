"""PostgreSQL's settings for a machine that is its own: from memory and cores."""

from __future__ import annotations

__virtualname__ = "pgsize"


def __virtual__() -> str:
    return __virtualname__


def settings(memory: int, cores: int) -> dict[str, str | int]:
    """The settings of postgresql.conf that a machine's size decides.

    A quarter of the memory is PostgreSQL's own cache, the system's cache has most of the
    rest; ``work_mem`` is small enough for every connection to sort at once.

    :param memory: in MiB.
    :param cores: how many.

    CLI Example:

    .. code-block:: bash

        salt database pgsize.settings 4096 2
    """
    buffers = _within(memory // 4, 64, 8192)
    connections = _within(memory // 20, 100, 500)
    return {
        "shared_buffers": f"{buffers}MB",
        "effective_cache_size": f"{max(memory * 3 // 4, buffers)}MB",
        "maintenance_work_mem": f"{_within(memory // 16, 32, 1024)}MB",
        "work_mem": f"{_within((memory - buffers) // (connections * 2), 1, 64)}MB",
        "max_connections": connections,
        "max_wal_size": f"{_within(memory // 2, 1024, 8192)}MB",
        "max_worker_processes": max(8, cores),
        "max_parallel_workers": max(1, cores // 2),
        "max_parallel_workers_per_gather": _within(cores // 4, 0, 2),
    }


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
