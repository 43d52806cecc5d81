"""M3.database from an older PostgreSQL: cut off, killed, moved, back, moved again, finalized.

The server as found has PostgreSQL 15; before M3 it gets 14 with the same data on the same port.
One lab for all of it, so the tests stand in the order in which they happen to the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bench import results
from tests.lab import milestones
from tests.lab.driver import SaltRunError, oldpostgres, wait_for
from tests.lab.stage import Stage, after_m2, changes, steps
from tests.lab.test_parts.database import (
    NAME,
    ORCH,
    WITH_A_DEAD_MACHINE,
    cuts_in_the_copy,
    everything,
    kills_at,
    orchestrate,
    sql,
    witnessed,
)

# `make soak` runs it: with it `make test` would take more than an hour. What can go wrong on the
# way is tested on real servers by tests/process/test_pglogical.py as well, in `make test`.
pytestmark = [pytest.mark.lab, pytest.mark.soak]

OLD = oldpostgres.MAJOR
#: As pg_createcluster and pg_ctlcluster look for it; of clients the newer ones are there.
PROGRAMS = f"/usr/lib/postgresql/{OLD}"
CLIENTS = ("psql", "createdb", "pg_dump", "pg_dumpall")
#: With Synapse stopped: the same roles, data, port and pg_hba.conf in a cluster of 14.
OLDER = f"""
set -eu
for name in {" ".join(CLIENTS)}; do ln -sf ../../15/bin/$name {PROGRAMS}/bin/$name; done
runuser -u postgres -- pg_dumpall --roles-only | grep -v -w postgres >/var/tmp/roles.sql
runuser -u postgres -- pg_dump -Fc synapse >/var/tmp/synapse.dump
systemctl disable --now postgresql@15-main || true
cp /etc/postgresql/15/main/pg_hba.conf /var/tmp/pg_hba.conf
certificate=$(pg_conftool -s 15 main show ssl_cert_file)
key=$(pg_conftool -s 15 main show ssl_key_file)
pg_dropcluster --stop 15 main
pg_createcluster {OLD} main --port 5432 --locale C --encoding UTF8
pg_conftool {OLD} main set ssl_cert_file "$certificate"
pg_conftool {OLD} main set ssl_key_file "$key"
pg_conftool {OLD} main set ssl on
cp /var/tmp/pg_hba.conf /etc/postgresql/{OLD}/main/pg_hba.conf
systemctl daemon-reload
systemctl start postgresql@{OLD}-main
runuser -u postgres -- psql -X -q -v ON_ERROR_STOP=1 -f /var/tmp/roles.sql
runuser -u postgres -- createdb -O synapse_user -T template0 -E UTF8 -l C synapse
runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_restore -d synapse /var/tmp/synapse.dump
rm /var/tmp/roles.sql /var/tmp/synapse.dump /var/tmp/pg_hba.conf
"""
#: Runs under the eyes of the witness, by the name of its report.
WITNESSED = {
    "restarted": "restart for wal_level, link cut in the copy",
    "killed": "new machine killed in the window, went back",
    "moved": "moved",
    "back": "taken back",
    "again": "moved again",
}
#: What of ours could be left on the old cluster.
OURS = """
SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL
SELECT 'publication ' || pubname FROM pg_publication UNION ALL
SELECT 'subscription ' || subname FROM pg_subscription UNION ALL
SELECT 'role ' || rolname FROM pg_roles WHERE rolname LIKE 'saltworks%' UNION ALL
SELECT 'identity ' || relname FROM pg_class WHERE relkind = 'r' AND relreplident IN ('f', 'i')
  AND relnamespace = 'public'::regnamespace
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own in which M2 is achieved, on PostgreSQL 14, with the empty machines of M3."""
    with after_m2("m3dbold", ("database", "storage", "directory")) as made:
        # Its way back is the cluster that goes now.
        made.lab.salt_run("milestone.arm", "m1.finalize")
        made.orchestrate("orch.m1.finalize")
        made.legacy.push(oldpostgres.programs(made.lab.settings.cache), PROGRAMS)
        synapse = made.lab.machine("synapse")
        synapse.run("systemctl stop synapse")
        made.legacy.run(OLDER, timeout=300)
        synapse.run("systemctl start synapse", timeout=90)
        url = milestones.MILESTONES["m2"].admin_url
        answers = f"curl -sf {url}/_matrix/client/versions"
        synapse.wait_for(answers, 90, "Synapse to answer")
        yield made


def synapse_is_let_in(stage: Stage) -> bool:
    """Whether the old cluster asks Synapse's machine for its password, and does not reject it."""
    address = stage.lab.settings.addresses["legacy"]
    words = [
        "/opt/synapse/current/bin/python", "-c",
        f"import psycopg2; psycopg2.connect('host={address} port=15432 dbname=synapse "
        "user=synapse_user password=wrong connect_timeout=5')",
    ]  # fmt: skip
    said = stage.lab.machine("synapse").run(words, check=False, timeout=30).stderr
    assert "pg_hba.conf rejects" in said or "password authentication failed" in said, said
    return "pg_hba.conf rejects" not in said


def test_all_that_speaks_against_it_is_said_at_once_and_nothing_is_touched(stage: Stage) -> None:
    assert sql(stage, "legacy", "SHOW server_version_num").startswith(str(OLD))
    found = everything(stage)
    with pytest.raises(SaltRunError) as refused:
        stage.orchestrate(ORCH)
    said = steps(refused.value.answer)["m3-database-prechecked"]["comment"]
    assert f"is version {OLD}, the map says" in said
    assert f"write synapse.database.version: {OLD} into the map" in said
    milestones.edit_map(
        stage.lab, lambda cluster: cluster["synapse"]["database"].update(version=OLD)
    )
    sql(stage, "legacy", "CREATE EXTENSION citext; SELECT lo_create(4711)")
    with pytest.raises(SaltRunError) as refused:
        stage.orchestrate(ORCH)
    said = steps(refused.value.answer)["m3-database-prechecked"]["comment"]
    assert "has extensions: citext" in said
    assert "has 1 large objects" in said
    sql(stage, "legacy", "DROP EXTENSION citext; SELECT lo_unlink(4711)")
    changed = {line for line in everything(stage) ^ found if "cluster.sls" not in line}
    assert changed == set()


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = everything(stage)
    plan = steps(stage.orchestrate(ORCH, test=True))
    assert everything(stage) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m3-database-held"]["result"] is None
    assert plan["m3-database-switched"]["result"] is None
    assert stage.state(NAME) == "not started"


def test_a_link_cut_during_the_copy_is_said_and_the_next_run_begins_anew(stage: Stage) -> None:
    machine = stage.lab.machine("database")
    # In brackets, or the search finds itself.
    cutting = cuts_in_the_copy(stage, "pgrep -f '[l]ogical replication worker'", 90)
    # The one restart of the old server falls into this run.
    with witnessed(stage, "restarted"), pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, cutting)
    assert any("copying from legacy failed" in line for line in failed.value.failures)
    assert any("run the milestone again" in line for line in failed.value.failures)
    assert sql(stage, "legacy", "SHOW wal_level") == "logical"
    machine.run("nft delete table inet lab")


def test_the_new_database_killed_in_the_window_leaves_all_with_the_old(stage: Stage) -> None:
    with witnessed(stage, "killed", WITH_A_DEAD_MACHINE), pytest.raises(SaltRunError) as failed:
        orchestrate(stage, ORCH, kills_at(stage, "pglogical.take_over"))
    assert any("Nothing is lost, everything serves as before" in f for f in failed.value.failures)
    assert synapse_is_let_in(stage)
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
    assert "follows by logical replication" in done["m3-database-verified"]["comment"]
    assert stage.state(NAME) == "achieved"
    assert sql(stage, "database", "SHOW server_version_num").startswith("15")
    after = milestones.read_back(stage.lab, stage.seed, reports / "after.json", at)
    assert milestones.compared(milestones.MILESTONES["m3"], before, after)["unexplained"] == []


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found = everything(stage)
    assert changes(stage.orchestrate(ORCH)) == []
    assert everything(stage) ^ found == set()


def test_the_old_one_lets_nobody_in_whoever_starts_it_and_follows(stage: Stage) -> None:
    assert not synapse_is_let_in(stage)
    stage.legacy.run("systemctl restart postgresql", timeout=90)
    assert not synapse_is_let_in(stage)
    events = "SELECT max(stream_ordering) FROM events"
    wait_for(
        lambda: sql(stage, "legacy", events) == sql(stage, "database", events),
        30,
        "the old cluster to follow",
    )


def test_it_goes_back_without_loss_and_there_again(stage: Stage) -> None:
    with witnessed(stage, "back"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert stage.state(NAME) == "rolled-back"
    assert synapse_is_let_in(stage)
    assert sql(stage, "legacy", OURS) == ""
    with witnessed(stage, "again"):
        again = steps(stage.orchestrate(ORCH))
    # It still runs with wal_level logical.
    assert again["m3-database-held"]["changes"] == {}
    assert stage.state(NAME) == "achieved"


def test_finalized_the_old_one_is_retired(stage: Stage) -> None:
    stage.lab.salt_run("milestone.arm", f"{NAME}.finalize")
    stage.orchestrate(f"{ORCH}.finalize")
    assert not stage.legacy.run("pgrep -x postgres", check=False).ok
    # Somebody starts it: no cluster comes up, only Debian's unit for all of them.
    stage.legacy.run("systemctl restart postgresql")
    assert not stage.legacy.run("pgrep -x postgres", check=False).ok
    stage.legacy.run("systemctl stop postgresql")
    assert not stage.legacy.run("ss -Hltn | grep -E ':(5432|15432) '", check=False).ok
    # Of ours only the role is left there, which no line of pg_hba.conf lets in.
    assert sql(stage, "database", OURS) == "role saltworks_replication"
    with pytest.raises(SaltRunError, match="is finalized"):
        stage.orchestrate(f"{ORCH}.rollback")
    assert changes(stage.orchestrate(ORCH)) == []
    stage.lab.salt_run("verify.milestone", NAME)
    reports = stage.lab.settings.reports
    m3 = milestones.MILESTONES["m3"]
    before = json.loads((reports / "after.json").read_text())
    end = milestones.read_back(stage.lab, stage.seed, reports / "end.json", m3)
    assert milestones.compared(m3, before, end)["unexplained"] == []


def test_what_people_saw_is_kept(stage: Stage) -> None:
    figures = ("acknowledged", "delivered", "lost", "duplicated", "failed_requests")
    rows = []
    for name, title in WITNESSED.items():
        report = json.loads((stage.lab.settings.reports / f"{name}.json").read_text())
        wait = f"{report['worst_wait_seconds']:.2f}"
        rows.append([title, *(str(report[figure]) for figure in figures), wait])
    head = ["what", "acknowledged", "delivered", "lost", "duplicated", "failed", "worst s"]
    title = f"M3.database from PostgreSQL {OLD}, by logical replication"
    assert results.show("database-older", title, head, rows).exists()
