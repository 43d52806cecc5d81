"""M1 on the real machines: refused, planned, rolled back, killed in the middle, done, finalized.

One lab for all of it, so the tests stand in the order in which they happen to the old server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.lab import legacy, milestones
from tests.lab.driver import LabError, SaltRunError
from tests.lab.stage import (
    DOOR,
    Stage,
    assert_a_failed_verify_harms_nobody,
    assert_as_found,
    assert_unharmed,
    changes,
    kill_minion,
    snapshots,
    staged,
    steps,
)

pytestmark = pytest.mark.lab

#: What may change on none of them when nothing may change.
MACHINES = ("salt", "legacy")
TRIGGER = """\
CREATE FUNCTION no_alter() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    -- Not in the copy in which the migration is rehearsed: the window shall meet it first.
    IF current_setting('data_directory') = '/var/lib/postgresql/15/main' THEN
        RAISE EXCEPTION 'sabotage: nothing is altered here';
    END IF;
END $$;
CREATE EVENT TRIGGER sabotage ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
EXECUTE FUNCTION no_alter();
"""


#: PostgreSQL 13 and Salt 3006, as far as a machine can tell.
OLD_POSTGRESQL = """\
CREATE SCHEMA older;
CREATE FUNCTION older.current_setting(text) RETURNS text LANGUAGE sql AS $$
SELECT CASE $1 WHEN 'server_version_num' THEN '130022' ELSE pg_catalog.current_setting($1) END
$$;
GRANT USAGE ON SCHEMA older TO PUBLIC;
ALTER DATABASE synapse SET search_path = older, pg_catalog, public;
"""
NEW_POSTGRESQL = "ALTER DATABASE synapse RESET search_path; DROP SCHEMA older CASCADE;"
SALT_VERSION = "/opt/salt/lib/python3.11/site-packages/salt/_version.txt"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own with an adopted old server on PostgreSQL."""
    with staged("m1", "postgresql") as made:
        yield made


@pytest.fixture(scope="module")
def before(stage: Stage) -> dict[str, Any]:
    """What clients read on the server as found."""
    return milestones.read_back(stage.lab, stage.seed, milestones.read_back_file(stage.lab, "m0"))


def psql(stage: Stage, script: str) -> None:
    """Statements in the old server's database, as its superuser."""
    words = ["psql", "-qd", "synapse", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    stage.legacy.run(words, input=script, user="postgres")


def salt_calls_itself(stage: Stage, version: str) -> None:
    """The minion of the old server, started anew, says that it is of another release."""
    stage.legacy.write(SALT_VERSION, version)
    stage.legacy.run("systemctl restart salt-minion", timeout=90)
    stage.lab.access.answering(["legacy"])


@contextlib.contextmanager
def spoilt(stage: Stage) -> Iterator[None]:
    """Everything that can be wrong with a map, its secrets, a database and a disk, at once."""
    master, machine = stage.master, stage.legacy
    files = {path: master.read(path) for path in (milestones.MAP, milestones.SECRETS)}
    backups = yaml.safe_load(files[milestones.MAP])["cluster"]["backup"]["directory"]
    there = machine.run(["test", "-e", backups], check=False).ok
    salt_version = machine.read(SALT_VERSION)

    def spoil(cluster: dict[str, Any]) -> None:
        cluster["colour"] = "blue"
        cluster["public"]["client_max_body_size"] = 50
        cluster["machines"]["nowhere"] = {"role": "proxy", "address": "198.18.0.77"}
        cluster["machines"]["elsewhere"] = {"role": "proxy", "address": "198.18.0.78"}

    secrets = yaml.safe_load(files[milestones.SECRETS])
    del secrets["secrets"]["macaroon_secret_key"]
    try:
        milestones.edit_map(stage.lab, spoil)
        master.write(milestones.SECRETS, yaml.safe_dump(secrets), mode=0o600)
        row = "INSERT INTO background_updates (update_name, progress_json) VALUES ('late', '{}')"
        legacy.query(machine, "postgresql", row)
        psql(stage, OLD_POSTGRESQL)
        salt_calls_itself(stage, "3006.9")
        machine.run(f"mkdir -p {backups} && mount -t tmpfs -o size=1m full {backups}")
        yield
    finally:
        machine.run(f"umount {backups}")
        if not there:
            machine.run(["rmdir", backups])
        legacy.query(machine, "postgresql", "DELETE FROM background_updates")
        psql(stage, NEW_POSTGRESQL)
        salt_calls_itself(stage, salt_version)
        for path, text in files.items():
            master.write(path, text, mode=0o600 if path == milestones.SECRETS else 0o644)


def test_all_that_is_wrong_is_refused_at_once_and_nothing_is_touched(stage: Stage) -> None:
    with spoilt(stage):
        found = snapshots(stage, MACHINES)
        with pytest.raises(SaltRunError) as refused:
            stage.orchestrate("orch.m1")
        assert snapshots(stage, MACHINES) ^ found == set()
    said = steps(refused.value.answer)
    lines = said["m1-prechecked"]["comment"].splitlines()
    # What is wrong, and a word of what to do about it.
    for what, step in {
        "'colour' was unexpected": "remove the key",
        "50 is not of type 'string'": "such as 50M",
        "role proxy is given to 2 machines": "leave proxy with one",
        "no accepted minion has the id nowhere": "salt-key -a nowhere",
        "no accepted minion has the id elsewhere": "salt-key -a elsewhere",
        "the secret macaroon_secret_key is missing": "secret.put macaroon_secret_key",
        "1 background updates of the old release wait: late": "background_updates is empty",
        "needed for": "make room",
        "PostgreSQL is 13, the new release needs": "upgrade the cluster first",
        "legacy: runs Salt 3006.9": "install salt-minion 3008.",
    }.items():
        assert any(what in line and step in line for line in lines), (what, step, lines)
    assert not [name for name, row in said.items() if row["result"] is not False]
    assert stage.state() == "not started"


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    plan = steps(stage.orchestrate("orch.m1", test=True))
    assert snapshots(stage, MACHINES) ^ found == set()
    assert stage.state() == "not started"
    assert not [name for name, row in plan.items() if row["result"] is False]
    window = plan["m1-window"]["changes"]["ret"]["legacy"].values()
    assert [row["comment"] for row in window if row["__id__"] == "upgrade-door-open"] == [
        "the door would be open to legacy"
    ]
    assert "m1-back" not in plan


def test_a_verify_that_fails_rolls_back_and_nobody_notices(
    stage: Stage, before: dict[str, Any]
) -> None:
    delete = "runuser -u postgres -- psql -qd synapse -c 'DELETE FROM user_filters'"
    assert_a_failed_verify_harms_nobody(stage, before, f'/bin/sh -c "{delete}"')


def test_a_migration_that_fails_rolls_back(stage: Stage) -> None:
    psql(stage, TRIGGER)
    try:
        with pytest.raises(SaltRunError) as failed:
            stage.orchestrate("orch.m1")
    finally:
        psql(stage, "DROP EVENT TRIGGER sabotage; DROP FUNCTION no_alter();")
    lines = failed.value.failures
    assert any("upgrade-migrated" in line and "no_alter" in line for line in lines), lines
    assert_as_found(stage)


def test_master_and_minion_killed_in_the_middle_it_goes_back_when_told(stage: Stage) -> None:
    out = stage.lab.settings.reports / "back-after-kill.json"
    with (
        ThreadPoolExecutor(1) as pool,
        milestones.chatting(stage.lab, stage.seed, out),
    ):
        run = stage.in_window(pool, "orch.m1")
        kill_minion(stage.legacy)
        stage.master.kill()
        with pytest.raises(LabError):
            run.result(60)
        stage.lab.boot(["salt", "legacy"])
        assert stage.state() == "running"
        assert stage.door() == ("closed", None)
        stage.orchestrate("orch.m1.rollback")
    assert_as_found(stage)
    # People waited for a machine to boot, and no more than that happened to them.
    assert_unharmed(out)


def test_killed_in_the_middle_it_finishes_when_run_again(stage: Stage) -> None:
    out = stage.lab.settings.reports / "killed.json"
    with (
        ThreadPoolExecutor(1) as pool,
        milestones.chatting(stage.lab, stage.seed, out),
    ):
        run = stage.in_window(pool, "orch.m1")
        kill_minion(stage.legacy)
        with pytest.raises(SaltRunError):
            run.result(300)
        stage.lab.access.answering(["salt", "legacy"])
        assert stage.state() != "achieved"

        run = stage.in_window(pool, "orch.m1")
        stage.master.kill()
        with pytest.raises(LabError):
            run.result(60)
        # The window is one state run on its machine, which needs no master to end.
        stage.legacy.wait_for(f"readlink {DOOR} | grep -q /legacy", 120, "the door to open")
        stage.lab.boot(["salt", "legacy"])
        assert stage.state() == "running"
        stage.orchestrate("orch.m1")
    assert stage.state() == "achieved"
    assert stage.door() == ("open", "legacy")
    assert_unharmed(out)


def test_m1_under_the_eyes_of_the_witness(stage: Stage, before: dict[str, Any]) -> None:
    stage.fresh_old_server()
    assert stage.state() == "not started"
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m1", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert report["delivered"] == report["acknowledged"]
    assert stage.state() == "achieved"
    assert stage.version() == wanted_version(stage)
    assert stage.main_pid("matrix-synapse") == "0"


def wanted_version(stage: Stage) -> str:
    """The release that the map names."""
    return str(yaml.safe_load(stage.master.read(milestones.MAP))["cluster"]["releases"]["synapse"])


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    pid = stage.main_pid("synapse")
    assert pid != "0"
    answer = stage.orchestrate("orch.m1")
    assert changes(answer) == []
    comment = steps(answer)["m1-converged"]["comment"]
    assert "No changes made to" in comment
    assert "legacy" in comment
    assert "salt" in comment
    assert stage.main_pid("synapse") == pid
    assert snapshots(stage, MACHINES) ^ found == set()


def test_the_way_back_is_refused_once_the_door_was_open(stage: Stage) -> None:
    found = snapshots(stage, MACHINES)
    with pytest.raises(SaltRunError, match="would lose what people have written there since"):
        stage.orchestrate("orch.m1.rollback")
    assert snapshots(stage, MACHINES) ^ found == set()
    assert stage.state() == "achieved"
    assert stage.door() == ("open", "legacy")


def test_finalize_wants_its_catch_open(stage: Stage) -> None:
    backups = yaml.safe_load(stage.master.read(milestones.MAP))["cluster"]["backup"]["directory"]
    manifest = ["find", backups, "-name", "manifest.json"]
    kept = stage.legacy.run(manifest).stdout.split()
    assert len(kept) == 1
    with pytest.raises(SaltRunError, match=r"not armed.*salt-run milestone\.arm m1\.finalize"):
        stage.orchestrate("orch.m1.finalize")
    assert stage.legacy.run(manifest).stdout.split() == kept
    pid = stage.main_pid("synapse")

    stage.lab.salt_run("milestone.arm", "m1.finalize")
    stage.orchestrate("orch.m1.finalize")
    assert stage.legacy.run(manifest, check=False).stdout == ""
    assert stage.main_pid("synapse") == pid
    # Once only.
    with pytest.raises(SaltRunError, match="not armed"):
        stage.orchestrate("orch.m1.finalize")
