"""One pass from SQLite to PostgreSQL and no second; the program itself is stood in for.

The real one ports real databases in the lab; here the point is which target it is given.
"""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres

Json = dict[str, Any]

PROGRAM = """#!{python}
import json, pathlib, sys
action, stage = sys.argv[3], pathlib.Path({stage!r})
now = stage.read_text()
say = lambda **words: print("saltworks " + json.dumps(words), flush=True)
if action == "wait":
    say(ready=True)
    if not sys.stdin.readline():
        sys.exit(0)
    now = stage.read_text()
    if now != "prepared":
        sys.exit(f"the target is {{now}}, not freshly prepared")
    stage.write_text("begun")
    answer = json.loads(pathlib.Path({answer!r}).read_text())
    if answer is None:
        raise RuntimeError("no such luck")
    if not answer["different"]:
        stage.write_text("ported")
    say(**answer)
else:
    stage.write_text({{"stage": now, "clear": "empty", "mark": "prepared"}}[action])
    say(stage=stage.read_text())
"""
DONE = {"tables": 158, "rows": 6883, "dropped": 0, "different": [], "seconds": {}}


class Port:
    """The module, with a target that is a word in a file."""

    def __init__(self, folder: Path) -> None:
        self.salt = postgres.loaded(("saltworks_pgcluster", "synapse_port"))
        self.salt["synapse_db.schema"] = lambda connection: {"pending": self.pending}
        self.salt["synapse_db.run_update"] = lambda *words: self.made.append(words)
        self.salt["cp.cache_file"] = lambda url: str(folder / "port.py")
        self.salt["synapse_port.port"].__globals__["FOLDER"] = str(folder / "records")
        self.pending: list[str] = []
        self.made: list[Any] = []
        self.stage, self.answer = folder / "stage", folder / "answer"
        (folder / "port.py").write_text("")
        self.stage.write_text("empty")
        self.will(DONE)
        python = folder / "release/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(
            PROGRAM.format(python=sys.executable, stage=str(self.stage), answer=str(self.answer))
        )
        python.chmod(0o755)
        self.sqlite = folder / "homeserver.db"
        sqlite3.connect(self.sqlite).close()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.words = {
            "config": "/etc/synapse/upcoming.yaml",
            "release": str(folder / "release"),
            "sqlite": str(self.sqlite),
            "user": self.user,
        }

    def will(self, answer: Json | None) -> None:
        self.answer.write_text(json.dumps(answer))

    def prepare(self) -> Json:
        return dict(self.salt["synapse_port.prepare"](**self.words))

    def port(self) -> Json:
        return dict(self.salt["synapse_port.port"](**self.words))


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


def test_one_pass_into_a_target_made_for_it(port: Port) -> None:
    assert port.prepare() == {"changed": True}
    assert len(port.made) == 1
    # What is prepared is not made again; only the program is loaded anew.
    assert port.prepare() == {"changed": False}
    assert len(port.made) == 1
    done = port.port()
    assert (done["changed"], done["tables"]) == (True, 158)
    assert port.port()["changed"] is False
    assert port.salt["synapse_port.recorded"]()["rows"] == 6883
    assert stat.S_IMODE(port.sqlite.stat().st_mode) == 0o400
    port.salt["synapse_port.reopen"](str(port.sqlite), port.user)
    assert stat.S_IMODE(port.sqlite.stat().st_mode) == 0o600


def test_a_program_that_waits_is_not_asked_before_what_it_looks_at_itself(port: Port) -> None:
    port.prepare()
    port.salt["cp.cache_file"] = lambda url: pytest.fail("another process is started in the window")
    assert port.port()["changed"] is True


def test_the_program_need_not_wait_any_more_after_a_reboot(port: Port) -> None:
    port.prepare()
    port.salt["synapse_port.reopen"](str(port.sqlite), port.user)
    assert port.port()["changed"] is True


@pytest.mark.parametrize("stage", ["begun", "unknown", "empty"])
def test_a_target_that_was_used_is_never_ported_into(port: Port, stage: str) -> None:
    port.prepare()
    port.stage.write_text(stage)
    with pytest.raises(CommandExecutionError, match=f"the target is {stage}, not freshly prepared"):
        port.port()
    assert port.prepare() == {"changed": True}
    assert port.port()["changed"] is True


def test_a_pass_that_differs_or_fails_leaves_the_file_as_it_was(port: Port) -> None:
    for answer, said in (
        ({**DONE, "different": ["profiles (5 rows, 4 rows)"]}, "these tables differ: profiles"),
        (None, "no such luck"),
    ):
        port.prepare()
        port.will(answer)
        with pytest.raises(CommandExecutionError, match=said):
            port.port()
        assert stat.S_IMODE(port.sqlite.stat().st_mode) != 0o400
        assert port.salt["synapse_port.recorded"]() == {}
        with pytest.raises(CommandExecutionError, match="the target is begun"):
            port.port()


def test_nothing_is_prepared_while_background_updates_run(port: Port) -> None:
    port.pending = ["some_index"]
    with pytest.raises(CommandExecutionError, match="background updates still run"):
        port.prepare()
    assert port.made == []
