"""Workers leave the real machines, and M4.workers is taken back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.lab import milestones, workers
from tests.lab.driver import LabError
from tests.lab.stage import Stage, assert_reads_as_before, assert_unharmed
from tests.lab.test_parts.database import witnessed
from tests.lab.test_parts.test_workers import M4, MACHINES, NAME, ORCH, WORKER, WRITER, ports

pytestmark = pytest.mark.lab


def before(stage: Stage) -> Path:
    """The read-back of before the way back; the database has been put back to a time since M4."""
    return stage.lab.settings.reports / "readback-leaving.json"


def test_they_leave_in_peace(stage: Stage) -> None:
    with witnessed(stage, "left", workers.WRITER_WAIT):
        for name in (WORKER, WRITER):
            workers.drain(stage.lab, name)
    assert ports(stage, WORKER) == ports(stage, WRITER) == {"22"}
    config = yaml.safe_load(stage.lab.machine("synapse").read("/etc/synapse/homeserver.yaml"))
    assert not config.get("stream_writers")


def test_the_way_back_is_ended_by_the_next_run_when_the_master_died_in_its_window(
    stage: Stage,
) -> None:
    milestones.read_back(stage.lab, stage.seed, before(stage), M4)
    out = stage.lab.settings.reports / "killed.json"
    with (
        ThreadPoolExecutor(1) as pool,
        milestones.chatting(stage.lab, stage.seed, out),
    ):
        run = stage.in_window(pool, f"{ORCH}.rollback", "proxy")
        stage.master.kill()
        with pytest.raises(LabError):
            run.result(60)
        stage.lab.boot(MACHINES)
        assert stage.door("proxy") == ("closed", None)
        stage.orchestrate(f"{ORCH}.rollback")
    assert stage.state(NAME) == "rolled-back"


def test_nobody_was_refused_anything_on_the_way_back(stage: Stage) -> None:
    assert ports(stage, "redis") == {"22"}
    assert ports(stage, "synapse") == {"22", "8008", "8009"}
    config = stage.lab.machine("synapse").read("/etc/synapse/homeserver.yaml")
    assert "redis" not in yaml.safe_load(config)
    assert_reads_as_before(stage, json.loads(before(stage).read_text()))
    # People waited for a machine to boot, and no more than that happened to them.
    assert_unharmed(stage.lab.settings.reports / "killed.json")
