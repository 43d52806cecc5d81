"""M2 on the real machines: planned, gone back from, killed in the middle, done, finalized.

One lab for all of it, so the tests stand in the order in which they happen to the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import milestones
from tests.lab.driver import LabError, SaltRunError
from tests.lab.driver.settings import ADDRESSES
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import (
    SABOTAGE,
    Stage,
    assert_unharmed,
    changes,
    kill_minion,
    snapshots,
    staged,
    steps,
)

pytestmark = pytest.mark.lab

NEW = ("proxy", "synapse")
#: What may change on none of them when nothing may change.
MACHINES = ("salt", "legacy", "proxy", "synapse")
#: Longer than a milestone's own window may be: a move that fails holds people twice.
TWO_WINDOWS = 20


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own in which M1 is achieved, with two more machines."""
    with staged("m2", "postgresql") as made:
        with pytest.raises(SaltRunError, match="M1 is not achieved"):
            milestones.orchestrate(made.lab, "orch.m2")
        milestones.orchestrate(made.lab, "orch.m1")
        made.lab.up(NEW)
        made.lab.access.answering(list(MACHINES))
        yield made


def test_undeclared_machines_are_refused_and_nothing_is_touched(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    with pytest.raises(SaltRunError) as refused:
        milestones.orchestrate(stage.lab, "orch.m2")
    said = steps(refused.value.answer)["m2-prechecked"]["comment"]
    assert "role proxy" in said
    assert "role synapse" in said
    assert snapshots(stage, MACHINES) ^ found == set()


def test_a_plan_touches_nothing(stage: Stage) -> None:
    milestones.declare(stage.lab, milestones.rows(stage.lab, NEW))
    found = snapshots(stage, MACHINES)
    plan = steps(milestones.orchestrate(stage.lab, "orch.m2", test=True))
    assert snapshots(stage, MACHINES) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m2-handed-over"]["result"] is None
    assert stage.state("m2") == "not started"


def test_a_move_that_fails_goes_back_and_nothing_is_lost(stage: Stage) -> None:
    machine = stage.lab.machine("synapse")
    machine.write(SABOTAGE, "[Service]\nExecStartPre=/bin/false\n")
    out = stage.lab.settings.reports / "back.json"
    with milestones.chatting(stage.lab, stage.seed, out), pytest.raises(SaltRunError) as failed:
        milestones.orchestrate(stage.lab, "orch.m2")
    assert any("Nothing is lost, it serves on legacy" in line for line in failed.value.failures)
    assert_unharmed(out, TWO_WINDOWS)
    assert_gone_back(stage)
    machine.run(f"rm -r {SABOTAGE.rpartition('/')[0]} && systemctl daemon-reload")


def assert_gone_back(stage: Stage) -> None:
    """Synapse serves on the old server, and nowhere else."""
    assert stage.door("proxy") == ("open", "legacy")
    assert stage.main_pid("synapse", "synapse") == "0"
    assert stage.main_pid("synapse", "legacy") != "0"


def arriving(stage: Stage) -> None:
    """Waits until Synapse's new machine fetches and starts it."""
    jobs = "grep -qs synapse_move.arrive /var/cache/salt/minion/proc/*"
    stage.lab.machine("synapse").wait_for(jobs, 60, "Synapse to arrive")


def test_the_master_killed_in_the_middle_it_goes_back_when_told(stage: Stage) -> None:
    out = stage.lab.settings.reports / "back-after-kill.json"
    with (
        ThreadPoolExecutor(1) as pool,
        milestones.chatting(stage.lab, stage.seed, out),
    ):
        run = stage.in_window(pool, "orch.m2", "proxy")
        arriving(stage)
        stage.master.kill()
        with pytest.raises(LabError):
            run.result(60)
        # Its machine needs no master to start it: two Synapses are what must not come of it.
        stage.lab.boot(MACHINES)
        assert stage.state("m2") == "running"
        assert stage.door("proxy") == ("closed", None)
        stage.orchestrate("orch.m2.rollback")
        assert_gone_back(stage)
    assert stage.state("m2") == "rolled-back"
    # People waited for a machine to boot, and no more than that happened to them.
    assert_unharmed(out)


def test_killed_in_the_middle_it_finishes_when_run_again(stage: Stage) -> None:
    out = stage.lab.settings.reports / "killed.json"
    with stage.undone(MACHINES):
        with (
            ThreadPoolExecutor(1) as pool,
            milestones.chatting(stage.lab, stage.seed, out),
        ):
            run = stage.in_window(pool, "orch.m2", "proxy")
            arriving(stage)
            kill_minion(stage.lab.machine("synapse"))
            with pytest.raises(SaltRunError, match="it serves on legacy as before"):
                run.result(300)
            assert_gone_back(stage)

            run = stage.in_window(pool, "orch.m2", "proxy")
            stage.master.kill()
            with pytest.raises(LabError):
                run.result(60)
            stage.lab.boot(MACHINES)
            assert stage.state("m2") == "running"
            stage.orchestrate("orch.m2")
        assert stage.state("m2") == "achieved"
        assert stage.door("proxy") == ("open", "synapse")
        assert_unharmed(out)
    assert stage.state("m2") == "rolled-back"


def test_m2_under_the_eyes_of_the_witness(stage: Stage) -> None:
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m2", stage.seed)
    assert report["acknowledged"] > 100
    assert stage.state("m2") == "achieved"
    assert stage.door("proxy") == ("open", "synapse")


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found, pid = snapshots(stage, MACHINES), stage.main_pid("synapse", "synapse")
    assert pid != "0"
    assert changes(milestones.orchestrate(stage.lab, "orch.m2")) == []
    assert changes(milestones.orchestrate(stage.lab, "orch.m1")) == []
    assert stage.main_pid("synapse", "synapse") == pid
    assert snapshots(stage, MACHINES) ^ found == set()


def test_nothing_runs_beside_synapse(stage: Stage) -> None:
    host = machine_host(stage.lab.machine("synapse"))
    sockets = host.socket.get_listening_sockets()
    assert {row.rpartition(":")[2] for row in sockets if "tcp" in row} == {"22", "8008", "8009"}
    assert [row for row in sockets if "udp" in row] == []
    assert host.service("synapse").is_enabled
    assert not host.file("/usr/sbin/nginx").exists
    old = machine_host(stage.legacy)
    assert not old.service("synapse").is_running
    assert not old.service("matrix-synapse").is_enabled
    # Its secrets went with it.
    assert not old.file("/etc/synapse").exists


def test_the_other_web_site_stays_behind(stage: Stage) -> None:
    answer = stage.legacy.run("curl -sf -H 'Host: www.lale.test' http://127.0.0.1/")
    assert "<html" in answer.stdout.lower()


def test_what_stays_behind_is_open_to_synapse_alone(stage: Stage) -> None:
    knock = "timeout 2 bash -c '</dev/tcp/198.18.0.10/{}'"
    for port in (15432, 10389):
        assert stage.lab.machine("synapse").run(knock.format(port), check=False).ok
        assert not stage.lab.machine("proxy").run(knock.format(port), check=False).ok


def test_synapse_is_open_to_the_proxy_alone(stage: Stage) -> None:
    ask = f"curl -sf -m 2 http://{ADDRESSES['synapse']}:{{}}/health"
    for port in (8008, 8009):
        for name, reached in (("proxy", True), ("synapse", True), ("legacy", False)):
            assert stage.lab.machine(name).run(ask.format(port), check=False).ok is reached


def test_the_way_back_is_refused_once_the_door_was_open(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    with pytest.raises(SaltRunError, match="would lose what people have written there since"):
        milestones.orchestrate(stage.lab, "orch.m2.rollback")
    assert snapshots(stage, MACHINES) ^ found == set()


def test_the_old_site_goes_when_nobody_comes_by_it(stage: Stage) -> None:
    by_the_old = f"{milestones.PUBLIC_NAME}:443:{stage.legacy.address}"
    ask = f"https://{milestones.PUBLIC_NAME}/_matrix/client/versions"
    stage.master.run(["curl", "-sf", "--resolve", by_the_old, ask])
    with pytest.raises(SaltRunError, match=r"a client came by it \d+ s ago"):
        milestones.orchestrate(stage.lab, "orch.m2.finalize")
    stage.await_no_visitor()
    with pytest.raises(SaltRunError, match="not armed"):
        milestones.orchestrate(stage.lab, "orch.m2.finalize")
    stage.lab.dns_point(milestones.PUBLIC_NAME, stage.legacy.address)
    stage.lab.salt_run("milestone.arm", "m2.finalize")
    with pytest.raises(SaltRunError, match=r"point chat\.lale\.test to 198\.18\.0\.11"):
        milestones.orchestrate(stage.lab, "orch.m2.finalize")
    stage.lab.dns_point(milestones.PUBLIC_NAME, ADDRESSES["proxy"])
    resolved = f"getent ahostsv4 {milestones.PUBLIC_NAME} | grep -q 198.18.0.11"
    stage.master.wait_for(resolved, 30, "the public name to lead to the proxy")
    stage.lab.salt_run("milestone.arm", "m2.finalize")
    milestones.orchestrate(stage.lab, "orch.m2.finalize")
    assert stage.legacy.run("ls /etc/nginx/sites-enabled").stdout.split() == ["www"]
    assert not stage.legacy.run("ls /etc/saltworks/transfer", check=False).ok
    assert changes(milestones.orchestrate(stage.lab, "orch.m2")) == []
    stage.lab.salt_run("verify.milestone", "m2")
