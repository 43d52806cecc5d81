"""M4.database on the real machines, with workers: the cluster, its primary's fate, and standbys.

It stands before the test that takes M4.workers back (`test_workers_leave`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from saltworks import registry

from tests.lab import milestones, readback, witness, workers
from tests.lab.driver import SaltRunError, wait_for
from tests.lab.driver.settings import MASTER
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import AFTER_M2, Stage, changes, snapshots, steps
from tests.lab.test_failover.cluster import follows, leader, status
from tests.lab.test_parts.conftest import NEW
from tests.lab.test_parts.database import refuses_writes, sql, witnessed
from tests.lab.test_parts.test_workers import WORKER, WRITER, ports, reaches

pytestmark = pytest.mark.lab

NAME = "m4.database"
ORCH = f"orch.{NAME}"
M4 = milestones.MILESTONES[NAME]
STANDBY, INVITED = "database-2", "database-3"
#: What may change on none of them when nothing may change.
MACHINES = (MASTER, *AFTER_M2, *NEW, *milestones.CLUSTER)
#: Issue 5: from the fault to the first accepted message.
KILLED_SECONDS, SWITCHED_SECONDS = 20.0, 5.0
#: A machine that boots, or copies the lab's small database.
REJOIN_SECONDS = 180


@pytest.fixture(scope="module", autouse=True)
def machines(stage: Stage) -> Iterator[None]:
    """The cluster's machines are there, empty; afterwards they are away again."""
    stage.lab.up(milestones.CLUSTER)
    stage.lab.access.answering(list(milestones.CLUSTER))
    yield
    for name in (*milestones.CLUSTER, INVITED):
        if stage.lab.machine(name).created:
            stage.lab.machine(name).destroy()


def processes(stage: Stage) -> dict[str, str]:
    """Of Synapse's main process, a writer and PostgreSQL: whoever restarts has another number.

    The other worker is taken out and in again, to read from the standby.
    """
    rows = {"synapse": ("synapse", "synapse"), WRITER: (f"synapse-worker@{WRITER}-1", WRITER)}
    found = {name: stage.main_pid(*row) for name, row in rows.items()}
    look = "head -1 /var/lib/postgresql/15/main/postmaster.pid"
    found["postgresql"] = stage.lab.machine("database").run(look).stdout.strip()
    assert "0" not in found.values(), found
    return found


def refused(stage: Stage) -> str:
    """What the precheck says; nothing has changed on any machine."""
    found = snapshots(stage, MACHINES)
    with pytest.raises(SaltRunError) as failed:
        stage.orchestrate(ORCH)
    assert snapshots(stage, MACHINES) ^ found == set()
    return str(steps(failed.value.answer)["m4-database-prechecked"]["comment"])


def test_all_that_speaks_against_it_is_said_at_once(stage: Stage) -> None:
    milestones.declare(stage.lab, milestones.rows(stage.lab, milestones.CLUSTER))
    there = stage.lab.machine("dcs-1")
    there.run("systemd-run --unit=squatter /usr/bin/python3 -m http.server 2379")
    try:
        there.wait_for("ss -Hltn 'sport = 2379' | grep -q .", 30, "somebody to take etcd's port")
        assert "write which one M3 moves the database to" in refused(stage)
        milestones.expect_databases(stage.lab)
        # Reconcile writes it down, as its key is accepted; it waits for the cluster.
        wait_for(
            lambda: workers.state(stage.lab, STANDBY) == "joining", 60, f"{STANDBY} to be known"
        )
        said = refused(stage)
    finally:
        there.run("systemctl stop squatter")
    assert "dcs-1: port 2379 is held by squatter.service" in said


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    plan = steps(stage.orchestrate(ORCH, test=True))
    assert snapshots(stage, MACHINES) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m4-database-founded"]["result"] is None
    assert stage.state(NAME) == "not started"


def test_m4_database_restarts_nobody_under_the_eyes_of_the_witness(stage: Stage) -> None:
    before = processes(stage)
    # It raises for anything lost, doubled or failed, a wait too long, or any difference.
    report = milestones.conduct(stage.lab, NAME, stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state(NAME) == "achieved"
    assert processes(stage) == before
    found = status(stage)
    assert (found["leader"], found["durability"]) == ("database", "sync")
    assert follows(stage, STANDBY)
    assert workers.state(stage.lab, STANDBY) == "ready"
    assert refuses_writes(stage, STANDBY)


def test_a_worker_comes_again_to_read_from_the_standby(stage: Stage) -> None:
    """Reconcile takes it out and in, as the map says that its kind reads from standbys."""

    def comes() -> bool:
        row = registry.of(workers.recorded(stage.lab, registry.RECORD)).get(WORKER)
        return row is not None and row.reads and row.state == "ready"

    with witnessed(stage, "reads", M4.worst_wait):
        wait_for(comes, workers.LEAVE_SECONDS + workers.JOIN_SECONDS, f"{WORKER} to come again")
        workers.await_joined(stage.lab, WORKER)
        # Read from while people chat; the primary itself is none.
        look = f"curl -sf http://{stage.lab.machine(WORKER).address}:8101/_synapse/metrics"
        ready = f'{look} | grep -q \'^synapse_standby_reads_ready.*{STANDBY}.* 1\''
        stage.lab.machine(WORKER).wait_for(ready, 60, "the standby to be read from")
        served = f'{look} | grep \'^synapse_standby_reads_interactions_total.*"standby"\''
        stage.lab.machine(WORKER).wait_for(f"{served} | grep -qv ' 0.0$'", 60, "a read there")


def test_its_ports_are_open_to_nobody_else(stage: Stage) -> None:
    assert ports(stage, "dcs-1") == {"22", "2379", "2380"}
    assert ports(stage, STANDBY) == {"22", "5432", "8008"}
    for name in ("synapse", "proxy", "database", STANDBY, "dcs-2", "legacy"):
        watcher, database = name == "dcs-2", name in ("database", STANDBY)
        assert reaches(stage, name, "dcs-1", 2379) is (watcher or database), name
        assert reaches(stage, name, "dcs-1", 2380) is watcher, name
        assert reaches(stage, name, STANDBY, 5432) is (database or name == "synapse"), name


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found, pids = snapshots(stage, MACHINES), processes(stage)
    assert changes(stage.orchestrate(ORCH)) == []
    assert processes(stage) == pids
    assert snapshots(stage, MACHINES) ^ found == set()


def accepted_after(stage: Stage, name: str, fault: Any) -> tuple[float, dict[str, Any]]:
    """People chat while something happens; seconds until a message was accepted after it.

    fault: what happens; nothing that was acknowledged may be lost.
    """
    out = stage.lab.settings.reports / f"{name}.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        # A silence must have two ends.
        time.sleep(3)
        fault()
        time.sleep(30)
    report: dict[str, Any] = json.loads(out.read_text())
    wrong = [line for line in witness.verdict(report) if "failed" not in line]
    assert wrong == [], wrong
    assert report["lost"] == report["duplicated"] == 0
    seconds = max((row["seconds"] for row in report["silences"]), default=0.0)
    failed = report["failed_requests"]
    stage.say(f"{name}: {seconds:.1f} s without an accepted message, {failed} failed")
    return seconds, report


def test_a_switchover_restarts_no_synapse_and_loses_nothing(stage: Stage) -> None:
    before = {name: pid for name, pid in processes(stage).items() if name != "postgresql"}
    seconds, _ = accepted_after(
        stage, "switchover", lambda: stage.lab.salt_run("database.switchover", STANDBY, timeout=90)
    )
    assert leader(stage) == STANDBY
    assert seconds < SWITCHED_SECONDS
    wait_for(lambda: follows(stage, "database"), 60, "the old primary to follow")
    assert refuses_writes(stage, "database")
    after = {name: pid for name, pid in processes(stage).items() if name != "postgresql"}
    assert after == before


def test_a_primary_that_dies_is_replaced_and_comes_again_as_a_standby(stage: Stage) -> None:
    seconds, _ = accepted_after(stage, "killed", stage.lab.machine(STANDBY).kill)
    assert seconds < KILLED_SECONDS
    assert leader(stage) == "database"
    stage.lab.boot([STANDBY], answering=False)
    wait_for(lambda: follows(stage, STANDBY), REJOIN_SECONDS, "the dead one to follow", interval=2)
    assert refuses_writes(stage, STANDBY)


def test_a_backup_counts_once_it_was_restored(stage: Stage) -> None:
    name = leader(stage)
    stage.lab.salt_run("backup.now", "full", timeout=300)
    with pytest.raises(SaltRunError, match="never restored"):
        stage.lab.salt_run("backup.status", timeout=120)
    said = str(stage.lab.salt_run("backup.verify", timeout=300)["return"])
    assert said.startswith("good: ")
    found = stage.lab.salt_run("backup.status", timeout=120)
    assert "good" in str(found["backups"][0]["restored"])
    # What lies in the store tells nobody anything.
    words = "grep -rlqa lale.test /var/lib/saltworks-storage/database"
    assert not stage.lab.machine("storage").run(words, check=False).ok
    timer = machine_host(stage.lab.machine(name)).service("saltworks-backup.timer")
    assert timer.is_running


def test_the_database_goes_back_to_the_second_asked_for(stage: Stage) -> None:
    reports = stage.lab.settings.reports
    before = milestones.read_back(stage.lab, stage.seed, reports / "readback-then.json", M4)
    # Media and what the reader itself leaves behind are over by then.
    time.sleep(2)
    target = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    time.sleep(2)
    with milestones.chatting(stage.lab, stage.seed, reports / "undone.json"):
        time.sleep(10)
    stage.lab.salt_run(
        "state.orchestrate", "orch.database.restore", f'pillar={{"target": "{target}"}}',
        timeout=milestones.ORCHESTRATE_SECONDS,
    )  # fmt: skip
    after = milestones.read_back(stage.lab, stage.seed, reports / "readback-now.json", M4)
    # One-time keys were given out since: they are dropped, and clients upload new ones.
    different = [row for row in readback.compare(before, after) if "one_time_keys" not in row.path]
    assert different == [], different
    assert stage.door("proxy") == ("open", "synapse")
    wait_for(lambda: follows(stage, STANDBY), REJOIN_SECONDS, "the standby's new copy", interval=2)


def test_a_standby_comes_by_its_invite_and_leaves_and_nobody_notices(stage: Stage) -> None:
    milestones.declare(
        stage.lab,
        {INVITED: {"role": "database", "address": stage.lab.machine(INVITED).address}},
    )
    before = processes(stage)
    with witnessed(stage, "standby", M4.worst_wait):
        workers.invited(stage.lab, INVITED)
        workers.await_joined(stage.lab, INVITED)
        assert follows(stage, INVITED)
        hosts = "grep ^host= /etc/synapse/pg_service.conf"
        for name in ("synapse", WORKER):
            said = stage.lab.machine(name).run(hosts).stdout.strip()
            assert said == f"host=database,{STANDBY},{INVITED}"
        workers.drain(stage.lab, INVITED)
    # Its key in etcd lives 12 s longer.
    left = f"{INVITED} to be no member any more"
    wait_for(lambda: INVITED not in status(stage)["members"], 30, left)
    assert ports(stage, INVITED) == {"22"}
    assert processes(stage) == before


def test_a_state_run_on_every_machine_changes_nothing(stage: Stage) -> None:
    # Who has nothing to do with a machine that was declared meanwhile reads its name only now.
    late = changes(stage.lab.salt("*", "state.apply", timeout=300))
    assert {row.partition(":")[0] for row in late} <= {f"base-host-{INVITED}"}, late
    assert changes(stage.lab.salt("*", "state.apply", timeout=300)) == []


def test_it_does_not_go_while_a_standby_is_there(stage: Stage) -> None:
    with pytest.raises(SaltRunError, match=f"worker.drain {STANDBY}"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert stage.state(NAME) == "achieved"


def test_the_way_back_ends_with_one_database_that_has_everything(stage: Stage) -> None:
    out = stage.lab.settings.reports / "cluster-back.json"
    rows = "SELECT count(*) FROM events"
    with milestones.chatting(stage.lab, stage.seed, out):
        workers.drain(stage.lab, STANDBY)
        stage.orchestrate(f"{ORCH}.rollback")
    report = json.loads(out.read_text())
    assert report["lost"] == report["duplicated"] == 0
    assert stage.state(NAME) == "rolled-back"
    assert ports(stage, "database") == {"22", "5432"}
    assert ports(stage, "dcs-1") == {"22"}
    assert int(sql(stage, "database", rows)) > 0
    assert changes(stage.lab.salt("database", "state.apply", timeout=300)) == []
    said = stage.lab.machine("synapse").run("grep ^host= /etc/synapse/pg_service.conf").stdout
    assert said.strip() == "host=database"
