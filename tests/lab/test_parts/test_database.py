"""M3.database on the real machines: cut off, killed in the window, moved, back, finalized."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.driver import SaltRunError, wait_for
from tests.lab.stage import Stage, assert_reads_as_before, changes, steps
from tests.lab.test_parts.database import (
    NAME,
    ORCH,
    WITH_A_DEAD_MACHINE,
    cuts_in_the_copy,
    everything,
    kills_at,
    orchestrate,
    refuses_writes,
    sql,
    witnessed,
)

pytestmark = pytest.mark.lab

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
    cutting = cuts_in_the_copy(stage, "pgrep -x pg_basebackup", 60)
    with pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, cutting)
    assert any("copying from legacy failed" in line for line in failed.value.failures)
    assert any("run the milestone again" in line for line in failed.value.failures)
    assert sql(stage, "legacy", "SELECT pg_is_in_recovery()") == "f"
    machine.run("nft delete table inet lab")


def test_the_new_database_killed_in_the_window_leaves_all_with_the_old(stage: Stage) -> None:
    with witnessed(stage, "killed", WITH_A_DEAD_MACHINE), pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, kills_at(stage, "pgstandby.promote"))
    assert any("Nothing is lost, everything serves as before" in f for f in failed.value.failures)
    assert sql(stage, "legacy", "SELECT pg_is_in_recovery()") == "f"
    stage.lab.boot(["database"])


def test_m3_database_under_the_eyes_of_the_witness(stage: Stage, before: dict[str, Any]) -> None:
    with witnessed(stage, "moved"):
        done = steps(stage.orchestrate(ORCH))
    stage.say(str(done["m3-database-switched"]["changes"]))
    stage.say(str(done["m3-database-verified"]["comment"]))
    assert "are equal, by checksum, as of the switch" in done["m3-database-verified"]["comment"]
    assert stage.state(NAME) == "achieved"
    assert_reads_as_before(stage, before)


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
    # Somebody starts it: no cluster comes up, only Debian's unit for all of them.
    stage.legacy.run("systemctl restart postgresql")
    assert not stage.legacy.run("pgrep -x postgres", check=False).ok
    stage.legacy.run("systemctl stop postgresql")
    assert not stage.legacy.run("ss -Hltn | grep -E ':(5432|15432) '", check=False).ok
    assert sql(stage, "database", "SELECT count(*) FROM pg_replication_slots") == "0"
    with pytest.raises(SaltRunError, match="is finalized"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert changes(stage.orchestrate(ORCH)) == []
    stage.lab.salt_run("verify.milestone", NAME)
