"""M4.workers on the real machines; workers come, die and leave; and the way back."""

from __future__ import annotations

import pytest
import yaml
from saltworks import slices

from tests.lab import milestones, workers
from tests.lab.driver import SaltRunError
from tests.lab.driver.settings import ADDRESSES, MASTER
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import (
    AFTER_M2,
    Stage,
    changes,
    snapshots,
    steps,
)
from tests.lab.test_parts.conftest import NEW
from tests.lab.test_parts.database import witnessed

pytestmark = pytest.mark.lab

NAME = "m4.workers"
ORCH = f"orch.{NAME}"
#: What may change on none of them when nothing may change.
MACHINES = (MASTER, *AFTER_M2, *NEW)
WORKER, WRITER = "sync-1", "writer-1"
M4 = milestones.MILESTONES[NAME]
PACKAGES = "/opt/synapse/current/lib/python3*/site-packages"


@pytest.fixture(scope="module", autouse=True)
def m3(stage: Stage) -> None:
    """M3 is achieved, and workers are declared."""
    if stage.state("m3") != "achieved":
        stage.orchestrate("orch.m3")
    milestones.expect_workers(stage.lab)


def refused(stage: Stage) -> str:
    """What the precheck says; nothing has changed on any machine."""
    found = snapshots(stage, MACHINES)
    with pytest.raises(SaltRunError) as failed:
        stage.orchestrate(ORCH)
    assert snapshots(stage, MACHINES) ^ found == set()
    return str(steps(failed.value.answer)["m4-workers-prechecked"]["comment"])


def ports(stage: Stage, machine: str) -> set[str]:
    """TCP ports that a machine listens on."""
    host = machine_host(stage.lab.machine(machine))
    sockets = host.socket.get_listening_sockets()
    return {row.rpartition(":")[2] for row in sockets if row.startswith("tcp")}


def reaches(stage: Stage, machine: str, other: str, port: int) -> bool:
    knock = f"timeout 2 bash -c '</dev/tcp/{ADDRESSES[other]}/{port}'"
    return stage.lab.machine(machine).run(knock, check=False).ok


def test_all_that_speaks_against_it_is_said_at_once(stage: Stage) -> None:
    there, synapse = stage.lab.machine("redis"), stage.lab.machine("synapse")
    there.run("systemd-run --unit=squatter /usr/bin/python3 -m http.server 6379")
    there.wait_for("ss -Hltn 'sport = 6379' | grep -q .", 30, "somebody to take Redis's port")
    synapse.run(f"mv {PACKAGES}/txredisapi-*.dist-info /root/")
    said = refused(stage)
    synapse.run(f"mv /root/txredisapi-*.dist-info {PACKAGES}/")
    there.run("systemctl stop squatter")
    assert "redis: port 6379: python3 (squatter.service) listens there" in said
    assert "synapse: release: txredisapi" in said
    assert "state.apply synapse.built" in said


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    plan = steps(stage.orchestrate(ORCH, test=True))
    assert snapshots(stage, MACHINES) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m4-workers-switched"]["result"] is None
    assert stage.state(NAME) == "not started"


def test_m4_workers_under_the_eyes_of_the_witness(stage: Stage) -> None:
    # It waits until there is Redis, and comes with the milestone.
    workers.invited(stage.lab, WORKER)
    # It raises for anything lost, doubled or failed, a wait too long, or any difference.
    report = milestones.conduct(stage.lab, NAME, stage.seed, stage.say)
    stage.say(f"worst wait {report['worst_wait_seconds']} s, {report['acknowledged']} sent")
    assert report["acknowledged"] > 100
    assert stage.state(NAME) == "achieved"
    assert stage.door("proxy") == ("open", "synapse")
    assert workers.state(stage.lab, WORKER) == "ready"


def test_redis_and_main_s_port_for_workers_are_open_to_nobody_else(stage: Stage) -> None:
    assert ports(stage, "redis") == {"22", "6379"}
    assert ports(stage, "synapse") == {"22", "8008", "8009", "9093"}
    for name in ("synapse", "proxy", "database", "legacy"):
        assert reaches(stage, name, "redis", 6379) is (name == "synapse")
        assert reaches(stage, name, "synapse", 9093) is (name == "synapse")


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    pids = [stage.main_pid("synapse", "synapse"), stage.main_pid("redis-server", "redis")]
    assert "0" not in pids
    for name in (ORCH, "orch.m3"):
        assert changes(stage.orchestrate(name)) == []
    assert pids == [
        stage.main_pid("synapse", "synapse"),
        stage.main_pid("redis-server", "redis"),
    ]
    assert snapshots(stage, MACHINES) ^ found == set()


def test_the_first_worker_serves_people(stage: Stage) -> None:
    with witnessed(stage, "joined", M4.worst_wait):
        # Of the witness: what the join itself asks has no account.
        log = f"/var/log/nginx/{slices.SITE}.access.log"
        served = rf"grep -qE '/sync[^\"]*\" 200 .* {WORKER}-1$' {log}"
        stage.lab.machine("proxy").wait_for(served, 90, f"{WORKER} to answer people")
    stage.say(str(stage.lab.salt_run("worker.report", WORKER, timeout=60)))
    assert ports(stage, WORKER) == {"22", "8101"}


def test_redis_does_not_go_while_a_worker_is_there(stage: Stage) -> None:
    with pytest.raises(SaltRunError, match=f"worker.drain {WORKER}"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert stage.state(NAME) == "achieved"


def test_a_stream_writer_comes_and_everybody_is_told(stage: Stage) -> None:
    with witnessed(stage, "writer", workers.WRITER_WAIT):
        workers.invited(stage.lab, WRITER)
        workers.await_joined(stage.lab, WRITER)
        log = f"/var/log/nginx/{slices.SITE}.access.log"
        served = rf"grep -qE '/sendToDevice/[^\"]*\" 200 .* {WRITER}-1$' {log}"
        stage.lab.machine("proxy").wait_for(served, 90, f"{WRITER} to answer people")
    for name in ("synapse", WORKER, WRITER):
        config = stage.lab.machine(name).read("/etc/synapse/homeserver.yaml")
        assert yaml.safe_load(config)["stream_writers"]["to_device"] == [f"{WRITER}-1"], name


def test_a_state_run_on_every_machine_changes_nothing(stage: Stage) -> None:
    assert changes(stage.lab.salt("*", "state.apply", timeout=300)) == []


def test_a_machine_that_dies_is_replaced_and_comes_again_by_itself(stage: Stage) -> None:
    main = stage.main_pid("synapse", "synapse")
    with witnessed(stage, "lost", M4.worst_wait):
        stage.lab.machine(WORKER).kill()
        workers.await_gone(stage.lab, WORKER, workers.LOSS_SECONDS)
        stage.lab.boot([WORKER], answering=False)
        workers.await_joined(stage.lab, WORKER)
    assert stage.main_pid("synapse", "synapse") == main, "it restarts nobody"
