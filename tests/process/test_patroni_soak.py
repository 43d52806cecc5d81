"""Failover again and again: medians and worst times for docs/database-cluster.md."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.process.front_door import wait_for
from tests.process.patroni_house import Machine
from tests.process.test_patroni import KILL_SECONDS, SWITCH_SECONDS, Cluster, cluster, renderer

__all__ = ["cluster", "renderer"]

TIMES = 10


def told(what: str, seconds: list[float]) -> None:
    worst, middle = max(seconds), statistics.median(seconds)
    print(f"{what}: first write after {middle:.1f} s (median), {worst:.1f} s (worst) of {TIMES}")


def stepped_down(machine: Machine) -> None:
    wait_for("the old one to step down", lambda: not machine.takes_writes())


@pytest.mark.soak
def test_switchovers(cluster: Cluster) -> None:
    took = []
    for _ in range(TIMES):
        leader, standby = cluster.synchronous()
        begun = time.monotonic()
        leader.call("switchover")
        cluster.client.until(cluster.machines, 10)
        took.append(time.monotonic() - begun)
        assert cluster.client.lost(standby) == []
    told("switchover", took)
    assert max(took) < SWITCH_SECONDS


@pytest.mark.soak
@pytest.mark.parametrize("frozen", [False, True])
def test_leaders_that_die(cluster: Cluster, frozen: bool) -> None:
    took = []
    for _ in range(TIMES):
        leader, standby = cluster.synchronous()
        cluster.client.until([leader], 5)
        if frozen:
            leader.freeze()
        else:
            leader.kill()
        took.append(cluster.client.until([standby], KILL_SECONDS)[1])
        assert cluster.client.lost(standby) == []
        if frozen:
            leader.freeze(False)
            stepped_down(leader)
        else:
            leader.start()
        assert cluster.roles() == (standby, leader)
        assert cluster.client.lost(standby) + cluster.client.lost(leader) == []
    told("frozen" if frozen else "killed", took)
