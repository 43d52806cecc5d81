"""An old server on SQLite: rolled back, then M1, M2 and M3 under the eyes of the witness.

One lab for all of it, so the tests stand in the order in which they happen to the server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import legacy, milestones
from tests.lab.driver import SaltRunError
from tests.lab.stage import (
    Stage,
    assert_a_failed_verify_harms_nobody,
    assert_unharmed,
    changes,
    snapshots,
    staged,
    steps,
)
from tests.lab.test_m2 import MACHINES, NEW

pytestmark = pytest.mark.lab

#: Machines that M3 needs besides.
M3 = ("database", "storage", "directory")
ORCH = "orch.m3.database"
FILE = "/var/lib/synapse/homeserver.db"
#: A pass that fails holds people twice.
TWO_WINDOWS = 25.0
DELETE = (
    f"import sqlite3; db = sqlite3.connect('{legacy.HOME}/homeserver.db'); "
    "db.execute('DELETE FROM user_filters'); db.commit()"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own with an adopted old server on SQLite."""
    with staged("sqlite", "sqlite") as made:
        yield made


def test_a_verify_that_fails_rolls_back_and_nobody_notices(stage: Stage) -> None:
    kept = milestones.read_back_file(stage.lab, "m0")
    before = milestones.read_back(stage.lab, stage.seed, kept)
    assert_a_failed_verify_harms_nobody(stage, before, f'/usr/bin/python3 -c "{DELETE}"')


def test_m1_under_the_eyes_of_the_witness(stage: Stage) -> None:
    # It raises for anything lost, doubled or failed, a wait too long, or an unexplained difference.
    report = milestones.conduct(stage.lab, "m1", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state() == "achieved"
    assert stage.door() == ("open", "legacy")
    assert stage.main_pid("matrix-synapse") == "0"


def test_a_second_run_of_m1_changes_nothing(stage: Stage) -> None:
    found, pid = snapshots(stage, ("salt", "legacy")), stage.main_pid("synapse")
    assert pid != "0"
    answer = stage.orchestrate("orch.m1")
    assert changes(answer) == []
    assert "No changes made to" in steps(answer)["m1-converged"]["comment"]
    assert stage.main_pid("synapse") == pid
    assert snapshots(stage, ("salt", "legacy")) ^ found == set()


def test_m2_under_the_eyes_of_the_witness(stage: Stage) -> None:
    stage.lab.up(NEW)
    stage.lab.access.answering(list(MACHINES))
    milestones.declare(stage.lab, milestones.rows(stage.lab, NEW))
    # The database goes along: what was read before the move is read after it, and nothing else.
    report = milestones.conduct(stage.lab, "m2", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state("m2") == "achieved"
    assert stage.door("proxy") == ("open", "synapse")
    assert stage.main_pid("synapse") == "0"


def test_a_second_run_of_m2_changes_nothing(stage: Stage) -> None:
    found, pid = snapshots(stage, MACHINES), stage.main_pid("synapse", "synapse")
    assert pid != "0"
    assert changes(stage.orchestrate("orch.m2")) == []
    assert stage.main_pid("synapse", "synapse") == pid
    assert snapshots(stage, MACHINES) ^ found == set()


def query(stage: Stage, statement: str) -> str:
    database = stage.lab.machine("database")
    words = ["psql", "-X", "-A", "-t", "-d", "synapse"]
    return database.run(words, input=statement, user="postgres").stdout.strip()


def test_a_pass_that_differs_goes_back_and_nothing_is_lost(stage: Stage) -> None:
    """A trigger in the target changes what is ported; the comparison must see it."""
    stage.lab.up(M3)
    milestones.declare(stage.lab, milestones.rows(stage.lab, M3))
    out = stage.lab.settings.reports / "differs.json"

    def on_event(tag: str, data: dict[str, object]) -> None:
        if tag.endswith("/new") and data.get("fun") == "door.announce":
            query(
                stage,
                "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.displayname = 'somebody else'; RETURN NEW; END $$; "
                "CREATE TRIGGER other BEFORE INSERT ON profiles FOR EACH ROW "
                "EXECUTE FUNCTION other()",
            )

    with milestones.chatting(stage.lab, stage.seed, out), pytest.raises(SaltRunError) as failed:
        stage.lab.salt_run(
            "state.orchestrate",
            ORCH,
            timeout=milestones.ORCHESTRATE_SECONDS,
            on_event=on_event,
        )
    assert any("these tables differ: profiles" in line for line in failed.value.failures)
    assert_unharmed(out, TWO_WINDOWS)


def test_m3_under_the_eyes_of_the_witness(stage: Stage) -> None:
    report = milestones.conduct(stage.lab, "m3", stage.seed, stage.say)
    assert report["acknowledged"] > 100
    assert stage.state("m3") == "achieved"


def test_nobody_writes_to_the_file_any_more(stage: Stage) -> None:
    shown = stage.lab.machine("synapse").run(["stat", "-c", "%U %a", FILE]).stdout.strip()
    assert shown == "root 400"
    assert query(stage, "SELECT stage FROM saltworks_port") == "ported"
    assert int(query(stage, "SELECT count(*) FROM user_directory")) > 0


def test_a_second_run_changes_nothing_and_there_is_no_way_back(stage: Stage) -> None:
    assert changes(stage.orchestrate(ORCH)) == []
    with pytest.raises(SaltRunError, match="from there no way leads to SQLite"):
        stage.orchestrate(f"{ORCH}.rollback")
    stage.orchestrate(ORCH)
    stage.lab.salt_run("milestone.arm", "m3.database.finalize")
    stage.orchestrate(f"{ORCH}.finalize")
