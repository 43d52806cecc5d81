"""States of backups: a store that knows the cluster; the master's steps of a restore."""

from __future__ import annotations

from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

SERVER = {"standby": False, "archive_mode": "on"}


class Machine:
    """One whose server and store answer as given."""

    def __init__(self, server: Any = None, store: Any = None, test: bool = False) -> None:
        self.said = {"server": server or SERVER, "store": store or {"backups": []}}
        self.made = 0
        self.fails = ""
        salt = {"pgbackrest.report": lambda: self.said, "pgbackrest.create": self.create}
        self.state = load("_states", "pgbackrest", salt, test)

    def create(self) -> None:
        if self.fails:
            raise CommandExecutionError(self.fails)
        self.made += 1

    def stanza(self) -> tuple[bool | None, dict[str, Any], str]:
        done = self.state.stanza("synapse")
        return done["result"], done["changes"], done["comment"]


GONE = {"error": "the store does not tell of synapse"}


def test_a_store_that_knows_the_cluster_is_left_alone() -> None:
    machine = Machine()
    assert machine.stanza() == (True, {}, "the store has 0 backups")
    assert machine.made == 0


def test_a_primary_makes_itself_known_once() -> None:
    machine = Machine(store=GONE)
    assert machine.stanza()[:2] == (True, {"stanza": {"old": None, "new": "synapse"}})
    assert machine.made == 1
    machine.fails = "no such bucket"
    assert machine.stanza() == (False, {}, "no such bucket")


def test_a_standby_leaves_that_to_the_primary() -> None:
    machine = Machine(server={**SERVER, "standby": True}, store=GONE)
    assert machine.stanza()[:2] == (True, {})
    assert machine.made == 0


def test_a_test_run_makes_nothing() -> None:
    machine = Machine(store=GONE, test=True)
    assert machine.stanza()[0] is None
    assert machine.made == 0


@pytest.mark.parametrize(("server", "word"), [
    ({"error": "no answer"}, "no answer"),
    ({**SERVER, "archive_mode": "off"}, "takes a restart"),
])
def test_a_server_that_cannot_archive_fails(server: dict[str, Any], word: str) -> None:
    done = Machine(server=server).stanza()
    assert done[0] is False
    assert word in done[2]


def steps(answer: Any, test: bool = False) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def runner(function: str, arg: Any, kwarg: Any, full_return: bool) -> dict[str, Any]:
        asked.append((function, kwarg))
        return {"return": answer, "success": True}

    return load("_states", "backup", {"saltutil.runner": runner}, test), asked


def test_a_restore_is_planned_by_what_only_reads() -> None:
    state, asked = steps({"said": "from b1", "changes": {}}, test=True)
    assert state.covered("T")["result"] is True
    assert state.restored("T")["result"] is None
    assert asked == [("backup.covered", {"target": "T", "machine": ""})]


def test_a_refused_time_fails() -> None:
    state, _ = steps({"data": "is to come", "retcode": 1})
    assert state.covered("T")["result"] is False
    assert state.restored("T")["comment"] == "is to come"


def test_what_was_done_is_a_change() -> None:
    state, asked = steps({"said": "restored", "changes": {"database": {"kept": "/k"}}})
    assert state.restored("T")["changes"] == {"database": {"kept": "/k"}}
    assert asked == [("backup.restore", {"target": "T", "machine": ""})]
