"""The lab in which primaries fail: a cluster of three databases, watched by three of etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import milestones, workers
from tests.lab.stage import Stage, after_m2
from tests.lab.test_parts.conftest import NEW

WORKERS = ("sync-1", "sync-2")
STANDBY = "database-3"


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    """M4 is achieved, with workers and two standbys."""
    with after_m2("failover", (*NEW, *milestones.CLUSTER)) as made:
        lab = made.lab
        milestones.expect_workers(lab)
        # Before anything moves: with two databases the map has to say which one M3 means.
        milestones.expect_databases(lab)
        made.orchestrate("orch.m3")
        made.await_no_visitor()
        lab.salt_run("milestone.arm", "m3.database.finalize")
        made.orchestrate("orch.m3.database.finalize")
        made.orchestrate("orch.m4.workers")
        made.orchestrate("orch.m4.database")
        row = {"role": "database", "address": lab.machine(STANDBY).address}
        milestones.declare(lab, {STANDBY: row})
        for name in (STANDBY, *WORKERS):
            workers.invited(lab, name)
        for name in (STANDBY, *WORKERS):
            workers.await_joined(lab, name)
        yield made
