"""M3.database on the real machines: cut off, killed in the window, moved, back, moved, finalized.

One lab for all of it, so the tests stand in the order in which they happen to the server.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import milestones, witness
from tests.lab.driver import SaltRunError, wait_for
from tests.lab.driver.saltaccess import OnEvent
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import Stage, after_m2, changes, snapshot, steps

# Not in `make test` until issue 3 is closed: `make test-m3`.
pytestmark = [pytest.mark.lab, pytest.mark.m3]

MACHINES = ("legacy", "proxy", "synapse", "database")
NAME = "m3.database"
ORCH = f"orch.{NAME}"
WORST_WAIT = 6.0
#: Units of the chat that the old machine may not run any more in the end.
CHAT = ("synapse", "matrix-synapse", "postgresql", "postgresql@15-main", "slapd")
#: A machine that is gone is waited for, then everybody is taken back.
WITH_A_DEAD_MACHINE = 50.0
#: What throttles the copy, so that there is time to cut it; `{}` is a limit.
LINK = "add table inet lab; add chain inet lab in {{ type filter hook input priority -20; }}; "
LINK += "add rule inet lab in ip saddr 198.18.0.10 tcp sport 15432 {} drop"
PSQL = ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own in which M2 is achieved, with the empty machines of M3."""
    with after_m2("m3db", "postgresql", ("database", "storage", "directory")) as made:
        yield made


def everything(stage: Stage) -> set[str]:
    """What may not change on any machine."""
    return {
        f"{name} {line}" for name in MACHINES for line in snapshot(stage.lab.machine(name))
    }


def sql(stage: Stage, machine: str, query: str, database: str = "synapse") -> str:
    done = stage.lab.machine(machine).run(
        [*PSQL, "-d", database], input=query, user="postgres", timeout=60
    )
    return done.stdout.strip()


def refuses_writes(stage: Stage, machine: str) -> bool:
    done = stage.lab.machine(machine).run(
        [*PSQL, "-d", "synapse"], input="CREATE TABLE mine ();", user="postgres", check=False
    )
    return not done.ok and "read-only transaction" in done.stderr


def orchestrate(stage: Stage, name: str, on_event: OnEvent) -> Any:
    stage.say(name)
    return stage.lab.salt_run(
        "state.orchestrate", name, timeout=milestones.ORCHESTRATE_SECONDS, on_event=on_event
    )


@contextlib.contextmanager
def witnessed(stage: Stage, name: str, worst_wait: float = WORST_WAIT) -> Iterator[None]:
    """People chat meanwhile, and nothing of it is lost."""
    out = stage.lab.settings.reports / f"{name}.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        yield
    report = json.loads(out.read_text())
    stage.say(f"{name}: worst wait {report.get('worst_wait_seconds')} s")
    assert witness.verdict(report, worst_wait) == []


def test_all_that_speaks_against_it_is_said_at_once_and_nothing_is_touched(stage: Stage) -> None:
    sql(stage, "legacy", "CREATE DATABASE wiki", "postgres")
    sql(stage, "legacy", "ALTER SYSTEM SET ssl = off; SELECT pg_reload_conf()", "postgres")
    found = everything(stage)
    with pytest.raises(SaltRunError) as refused:
        stage.orchestrate(ORCH)
    said = steps(refused.value.answer)["m3-database-prechecked"]["comment"]
    assert "holds other databases, which would move along: wiki" in said
    assert "has ssl off" in said
    assert everything(stage) ^ found == set()
    sql(stage, "legacy", "ALTER SYSTEM RESET ssl; SELECT pg_reload_conf()", "postgres")
    sql(stage, "legacy", "DROP DATABASE wiki", "postgres")


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = everything(stage)
    plan = steps(stage.orchestrate(ORCH, test=True))
    assert everything(stage) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m3-database-switched"]["result"] is None
    assert stage.state(NAME) == "not started"


def test_a_link_cut_during_the_copy_is_said_and_the_next_run_begins_anew(stage: Stage) -> None:
    machine = stage.lab.machine("database")

    def cut() -> None:
        machine.wait_for("pgrep -x pg_basebackup && sleep 1", 60, "the copy to begin")
        machine.run(["nft", "delete table inet lab; " + LINK.format("")])

    def on_event(tag: str, data: dict[str, Any]) -> None:
        if tag.endswith("/new") and "roles.database.copied" in str(data.get("arg")):
            machine.run(["nft", LINK.format("limit rate over 1 mbytes/second")])
            threading.Thread(target=cut).start()

    with pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, on_event)
    assert any("copying from legacy failed" in line for line in failed.value.failures)
    assert any("run the milestone again" in line for line in failed.value.failures)
    assert sql(stage, "legacy", "SELECT pg_is_in_recovery()") == "f"
    machine.run("nft delete table inet lab")


def test_the_new_database_killed_in_the_window_leaves_all_with_the_old(stage: Stage) -> None:
    machine = stage.lab.machine("database")

    def on_event(tag: str, data: dict[str, Any]) -> None:
        if tag.endswith("/new") and data.get("fun") == "pgstandby.promote":
            machine.kill()

    with witnessed(stage, "killed", WITH_A_DEAD_MACHINE), pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, on_event)
    assert any("Nothing is lost, everything serves as before" in f for f in failed.value.failures)
    assert sql(stage, "legacy", "SELECT pg_is_in_recovery()") == "f"
    stage.lab.boot(["database"])


def test_m3_database_under_the_eyes_of_the_witness(stage: Stage) -> None:
    at = milestones.MILESTONES["m2"]
    reports = stage.lab.settings.reports
    before = milestones.read_back(stage.lab, stage.seed, reports / "before.json", at)
    with witnessed(stage, "moved"):
        done = steps(stage.orchestrate(ORCH))
    stage.say(str(done["m3-database-switched"]["changes"]))
    stage.say(str(done["m3-database-verified"]["comment"]))
    assert "are equal, by checksum, as of the switch" in done["m3-database-verified"]["comment"]
    assert stage.state(NAME) == "achieved"
    after = milestones.read_back(stage.lab, stage.seed, reports / "after.json", at)
    assert milestones.compared(milestones.MILESTONES["m3"], before, after)["unexplained"] == []


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found = everything(stage)
    assert changes(stage.orchestrate(ORCH)) == []
    assert everything(stage) ^ found == set()


def test_the_old_one_takes_no_write_whoever_starts_it(stage: Stage) -> None:
    assert refuses_writes(stage, "legacy")
    stage.legacy.run("systemctl restart postgresql")
    wait_for(lambda: refuses_writes(stage, "legacy"), 30, "the old cluster to be back")
    events = "SELECT max(stream_ordering) FROM events"
    wait_for(
        lambda: sql(stage, "legacy", events) == sql(stage, "database", events),
        30,
        "the old cluster to follow",
    )


def test_the_new_one_lets_in_only_who_needs_it(stage: Stage) -> None:
    knock = "timeout 2 bash -c '</dev/tcp/198.18.0.13/5432'"
    for name, reached in (("synapse", True), ("legacy", True), ("proxy", False)):
        assert stage.lab.machine(name).run(knock, check=False).ok is reached
    query = "SELECT DISTINCT ssl, usename FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
    query += "WHERE client_addr IS NOT NULL ORDER BY 2"
    assert sql(stage, "database", query).splitlines() == [
        "t|saltworks_replication",
        "t|synapse_user",
    ]


def test_it_goes_back_without_loss_and_there_again(stage: Stage) -> None:
    with witnessed(stage, "back"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert stage.state(NAME) == "rolled-back"
    assert sql(stage, "legacy", "SELECT pg_is_in_recovery()") == "f"
    query = "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'saltworks_%'"
    assert sql(stage, "legacy", query) == ""
    with witnessed(stage, "again"):
        stage.orchestrate(ORCH)
    assert stage.state(NAME) == "achieved"


def test_finalized_the_old_one_is_retired(stage: Stage) -> None:
    with pytest.raises(SaltRunError, match="not armed"):
        stage.orchestrate(f"{ORCH}.finalize")
    stage.lab.salt_run("milestone.arm", f"{NAME}.finalize")
    stage.orchestrate(f"{ORCH}.finalize")
    assert not stage.legacy.run("pgrep -x postgres", check=False).ok
    stage.legacy.run("systemctl restart postgresql")
    assert not stage.legacy.run("pgrep -x postgres", check=False).ok
    assert not stage.legacy.run("ss -Hltn | grep -E ':(5432|15432) '", check=False).ok
    assert sql(stage, "database", "SELECT count(*) FROM pg_replication_slots") == "0"
    with pytest.raises(SaltRunError, match="is finalized"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert changes(stage.orchestrate(ORCH)) == []
    stage.lab.salt_run("verify.milestone", NAME)


def test_the_other_parts_follow_and_the_old_machine_runs_nothing_of_the_chat(stage: Stage) -> None:
    with witnessed(stage, "rest"):
        stage.orchestrate("orch.m3")
    assert stage.state("m3") == "achieved"
    stage.await_no_visitor()
    for step in ("m2", "m3.media", "m3.auth"):
        stage.lab.salt_run("milestone.arm", f"{step}.finalize")
        stage.orchestrate(f"orch.{step}.finalize")
    old = machine_host(stage.legacy)
    assert [unit for unit in CHAT if old.service(unit).is_running] == []
    assert stage.legacy.run("ls /etc/nginx/sites-enabled").stdout.split() == ["www"]
    reports = stage.lab.settings.reports
    m3 = milestones.MILESTONES["m3"]
    before = json.loads((reports / "after.json").read_text())
    end = milestones.read_back(stage.lab, stage.seed, reports / "end.json", m3)
    assert milestones.compared(m3, before, end)["unexplained"] == []
    assert changes(stage.orchestrate("orch.m3")) == []
