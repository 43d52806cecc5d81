"""M3 from SQLite on the real machines: a pass that fails, the pass, the other parts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import milestones, witness
from tests.lab.driver import SaltRunError
from tests.lab.stage import Stage, after_m2, changes, steps

# Not in `make test` until issue 3 is closed: `make test-m3`.
pytestmark = [pytest.mark.lab, pytest.mark.m3]

ORCH = "orch.m3.database"
FILE = "/var/lib/synapse/homeserver.db"
#: The pass itself takes seconds, within which people wait as well.
WORST_WAIT = 10.0
TWO_WINDOWS = 25.0


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A lab of its own in which M2 is achieved on SQLite, with the empty machines of M3."""
    with after_m2("m3dbsq", "sqlite", ("database", "storage", "directory")) as made:
        yield made


def query(stage: Stage, statement: str) -> str:
    database = stage.lab.machine("database")
    words = ["psql", "-X", "-A", "-t", "-d", "synapse"]
    return database.run(words, input=statement, user="postgres").stdout.strip()


def test_a_pass_that_differs_goes_back_and_nothing_is_lost(stage: Stage) -> None:
    """A trigger in the target changes what is ported; the comparison must see it."""
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
    assert witness.verdict(json.loads(out.read_text()), TWO_WINDOWS) == []


def test_the_pass_under_the_eyes_of_the_witness(stage: Stage) -> None:
    at = milestones.MILESTONES["m2"]
    reports = stage.lab.settings.reports
    before = milestones.read_back(stage.lab, stage.seed, reports / "before.json", at)
    out = reports / "ported.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        done = steps(stage.orchestrate(ORCH))
    stage.say(str(done["m3-database-switched"]["changes"]))
    stage.say(str(done["m3-database-verified"]["comment"]))
    report = json.loads(out.read_text())
    stage.say(f"worst wait {report.get('worst_wait_seconds')} s")
    assert witness.verdict(report, WORST_WAIT) == []
    assert "are equal, by checksum" in done["m3-database-verified"]["comment"]
    after = milestones.read_back(stage.lab, stage.seed, reports / "after.json", at)
    m3 = milestones.MILESTONES["m3"]
    assert milestones.compared(m3, before, after)["unexplained"] == []


def test_nobody_writes_to_the_file_any_more(stage: Stage) -> None:
    shown = stage.lab.machine("synapse").run(["stat", "-c", "%U %a", FILE]).stdout.strip()
    assert shown == "root 400"
    assert query(stage, "SELECT stage FROM saltworks_port") == "ported"
    assert int(query(stage, "SELECT count(*) FROM user_directory")) > 0


def test_a_second_run_changes_nothing_and_there_is_no_way_back(stage: Stage) -> None:
    assert changes(stage.orchestrate(ORCH)) == []
    with pytest.raises(SaltRunError, match="no way from there to SQLite"):
        stage.orchestrate(f"{ORCH}.rollback")
    stage.orchestrate(ORCH)
    stage.lab.salt_run("milestone.arm", "m3.database.finalize")
    stage.orchestrate(f"{ORCH}.finalize")


def test_the_other_parts_follow_to_the_end_of_m3(stage: Stage) -> None:
    out = stage.lab.settings.reports / "rest.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        stage.orchestrate("orch.m3")
    m3 = milestones.MILESTONES["m3"]
    assert witness.verdict(json.loads(out.read_text()), m3.worst_wait) == []
    assert stage.state("m3") == "achieved"
    reports = stage.lab.settings.reports
    before = json.loads((reports / "after.json").read_text())
    end = milestones.read_back(stage.lab, stage.seed, reports / "end.json", m3)
    assert milestones.compared(m3, before, end)["unexplained"] == []
