"""The thin states over the backup: what they say in test mode, and when nothing changes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres

MANIFEST = {"when": "2026-11-01T00:00:00Z", "base_bytes": 5 << 20, "seconds": 2.0}


class Calls(dict[str, Any]):
    """``__salt__`` with canned answers; what was called is in ``seen``."""

    def __init__(self, **answers: Any) -> None:
        self.seen: list[str] = []
        for name, answer in answers.items():
            self.answer(name.replace("__", "."), answer)

    def answer(self, name: str, answer: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self[name] = call


def state(name: str, salt: Calls, test: bool) -> ModuleType:
    module = postgres.load(postgres.STATES / f"{name}.py")
    vars(module)["__salt__"] = salt
    vars(module)["__opts__"] = {"test": test}
    return module


def test_a_standing_backup_is_no_change() -> None:
    for test in (True, False):
        taken = {**MANIFEST, "changed": False, "receiver_started": False}
        salt = Calls(pgbackup__standing=(MANIFEST, ""), pgbackup__base=taken)
        result = state("pgbackup", salt, test).based("/b")
        assert (result["result"], result["changes"]) == (True, {})
        assert ("pgbackup.base" in salt.seen) is not test


def test_a_missing_backup_is_announced_in_test_mode_and_taken_otherwise() -> None:
    taken = {**MANIFEST, "changed": True}
    salt = Calls(
        pgbackup__standing=(None, "there is none"), pgbackup__check=[], pgbackup__base=taken
    )
    announced = state("pgbackup", salt, True).based("/b")
    assert announced["result"] is None
    assert announced["changes"]["planned"]["new"] == announced["comment"]
    assert "pgbackup.base" not in salt.seen
    done = state("pgbackup", salt, False).based("/b")
    assert done["result"] is True
    assert done["changes"]["backup"]["old"] == "there is none"


def test_problems_show_in_test_mode() -> None:
    salt = Calls(pgbackup__standing=(None, "there is none"), pgbackup__check=["disk", "slots"])
    result = state("pgbackup", salt, True).based("/b")
    assert result["result"] is False
    assert result["comment"] == "disk; slots"


@pytest.mark.parametrize(
    ("proof", "release", "stands"),
    [
        (None, None, False),
        ({"backup": "another", "when": "w"}, None, False),
        ({"backup": MANIFEST["when"], "when": "w"}, None, True),
        ({"backup": MANIFEST["when"], "when": "w", "rehearsal": None}, "/r/1", False),
        ({"backup": MANIFEST["when"], "when": "w", "rehearsal": {"release": "/r/1"}}, "/r/1", True),
        (
            {"backup": MANIFEST["when"], "when": "w", "rehearsal": {"release": "/r/0"}},
            "/r/1",
            False,
        ),
    ],
)
def test_only_a_proof_of_this_backup_and_this_release_stands(
    proof: dict[str, Any] | None, release: str | None, stands: bool
) -> None:
    salt = Calls(pgbackup__status={"manifest": MANIFEST, "proof": proof})
    rehearse = {"release": release} if release else None
    result = state("pgbackup", salt, True).proven("/b", rehearse=rehearse)
    assert result["result"] is (True if stands else None)
    assert bool(result["changes"]) is not stands


def test_an_error_fails_the_state_with_its_words() -> None:
    salt = Calls(
        pgbackup__mark=CommandExecutionError("WAL did not arrive"),
        sqlitebackup__take=CommandExecutionError("disk"),
    )
    assert state("pgbackup", salt, False).marked("m1", "/b")["comment"] == "WAL did not arrive"
    assert state("sqlitebackup", salt, False).taken("m1", "/db", "/b")["result"] is False


@pytest.mark.parametrize(
    ("version", "pending", "online", "result"),
    [
        (94, [], False, True),
        (94, ["x"], True, True),
        (94, ["x"], False, None),
        (61, [], True, None),
    ],
)
def test_a_migration_is_due_or_not(
    version: int, pending: list[str], online: bool, result: bool | None
) -> None:
    salt = Calls(
        synapse_db__target_schema=94,
        synapse_db__schema={"version": version, "pending": pending},
    )
    assert state("synapse_db", salt, True).migrated("/c", "/r", online=online)["result"] is result


@pytest.mark.parametrize(
    ("marks", "moved", "result"), [(["m1"], True, True), (["m1"], False, None), ([], True, None)]
)
def test_a_mark_stands_once_the_database_has_moved_on(
    marks: list[str], moved: bool, result: bool | None
) -> None:
    salt = Calls(pgbackup__status={"marks": marks}, pgbackup__moved_on=moved)
    assert state("pgbackup", salt, True).marked("m1", "/b")["result"] is result


def test_acting_states_touch_nothing_in_test_mode() -> None:
    # The two reads are all that is answered: anything else would be a KeyError.
    salt = Calls(
        pgbackup__status={"manifest": MANIFEST},
        pgbackup__moved_on=True,
        sqlitebackup__moved_on=True,
    )
    pg, lite = state("pgbackup", salt, True), state("sqlitebackup", salt, True)
    for result in (
        pg.restored("m1", "/b"),
        lite.taken("m1", "/db", "/b"),
        lite.proven("m1", "/b"),
        lite.restored("m1", "/b"),
    ):
        assert result["result"] is None
        assert result["changes"] == {"planned": {"old": "", "new": result["comment"]}}
    assert salt.seen == ["pgbackup.status", "pgbackup.moved_on", "sqlitebackup.moved_on"]


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("pgbackup", {"pgbackup__status": {"manifest": None}}),
        ("pgbackup", {"pgbackup__status": {"manifest": MANIFEST}, "pgbackup__moved_on": False}),
        ("sqlitebackup", {"sqlitebackup__moved_on": False}),
    ],
)
def test_nothing_is_put_back_over_a_database_that_never_left_its_schema(
    name: str, answers: dict[str, Any], test: bool
) -> None:
    salt = Calls(**answers)
    result = state(name, salt, test).restored("m1", "/b")
    assert (result["result"], result["changes"]) == (True, {})
    assert "has not left the schema" in result["comment"]


@pytest.mark.parametrize(
    ("name", "more"),
    [("pgbackup", {"pgbackup__status": {"manifest": MANIFEST}}), ("sqlitebackup", {})],
)
def test_a_database_that_moved_on_is_put_back_once(name: str, more: dict[str, Any]) -> None:
    seconds: Any = {"total": 2.0} if name == "pgbackup" else 2.0
    done = {"changed": True, "failed": "aside", "point": "p", "seconds": seconds}
    answers = {**more, f"{name}__moved_on": True, f"{name}__restore": done}
    result = state(name, Calls(**answers), False).restored("m1", "/b")
    assert result["result"] is True
    assert result["changes"]["database"]["old"] == "kept as aside"
    answers[f"{name}__restore"] = {**done, "changed": False}
    again = state(name, Calls(**answers), False).restored("m1", "/b")
    assert (again["result"], again["changes"]) == (True, {})
    answers[f"{name}__restore"] = CommandExecutionError("the copy is damaged")
    failed = state(name, Calls(**answers), False).restored("m1", "/b")
    assert (failed["result"], failed["comment"]) == (False, "the copy is damaged")
