"""Decisions about Synapse's database that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres, synapse_tables


@pytest.fixture(scope="module")
def salt() -> dict[str, Any]:
    return postgres.loaded()


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "homeserver.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("seconds", "choice", "way"),
    [
        (3.0, None, "offline"),
        (60.0, None, "offline"),
        (60.1, None, "needs-choice"),
        (None, None, "needs-choice"),
        (4000.0, "online", "online"),
        (4000.0, "offline", "offline"),
        (1.0, "online", "online"),
    ],
)
def test_the_way_of_a_migration(
    salt: dict[str, Any], seconds: float | None, choice: str | None, way: str
) -> None:
    assert salt["synapse_db.migration_plan"](seconds, 4000, choice=choice)["way"] == way


def test_a_needed_choice_says_what_each_way_costs(salt: dict[str, Any]) -> None:
    words = salt["synapse_db.migration_plan"](900.0, 12_000_000)["words"]
    for part in ("900 s", "12,000,000 events", "unread counts", "offline:", "online:"):
        assert part in words


def test_another_choice_is_refused(salt: dict[str, Any]) -> None:
    with pytest.raises(CommandExecutionError, match="write offline or online"):
        salt["synapse_db.migration_plan"](1, 1, choice="later")


def test_the_schema_that_a_release_brings(salt: dict[str, Any], tmp_path: Path) -> None:
    folder = synapse_tables.release(tmp_path / "release")
    assert salt["synapse_db.target_schema"](folder) == 94
    with pytest.raises(CommandExecutionError, match="holds no Synapse"):
        salt["synapse_db.target_schema"](str(tmp_path / "nothing"))


def test_a_connection_carries_libpq_settings_only(salt: dict[str, Any], tmp_path: Path) -> None:
    text = """
    database:
      name: psycopg2
      args: {user: u, password: p, database: d, host: h, cp_min: 5, cp_max: 10, sslmode: require}
    """
    found = salt["synapse_db.connection"](config(tmp_path, text))
    assert found["params"] == {
        "user": "u",
        "password": "p",
        "dbname": "d",
        "host": "h",
        "sslmode": "require",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server_name: x", "`database:` with a `name:` is missing"),
        ("database: {name: mysql}", "the engine 'mysql' is not known"),
        ("database: {name: sqlite3, args: {database: ':memory:'}}", "write the absolute path"),
        ("- a", "is empty or not a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_configuration_without_a_usable_database_is_refused(
    salt: dict[str, Any], tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(CommandExecutionError, match=said):
        salt["synapse_db.connection"](config(tmp_path, text))


def test_differences_are_named_and_the_intended_ones_are_not(salt: dict[str, Any]) -> None:
    differences = salt["synapse_fingerprint.differences"]
    before = {"count:users": 8, "count:account_data": 12, "schema:version": 61, "tail:events": "a"}
    after = {"count:users": 8, "count:account_data": 11, "schema:version": 94, "tail:events": "a"}
    assert differences(before, before) == []
    assert differences(before, after, migrated=True) == []
    assert len(differences(before, after)) == 2
    assert differences(before, {**after, "count:users": 7}, migrated=True) == [
        "count of users: was 8, is 7"
    ]
    del after["tail:events"]
    assert "cannot be measured" in differences(before, after, migrated=True)[0]


@pytest.mark.parametrize(
    ("before", "after", "restored", "right"),
    [
        (5, 5, 5, True),
        (5, 5, 6, False),
        (5, 9, 7, True),
        (5, 9, 10, False),
        (5, 9, None, False),
        ("a", "a", "b", False),
        ("a", "b", "b", True),
        ("a", "b", "c", True),
    ],
)
def test_what_a_restored_copy_may_hold(
    salt: dict[str, Any], before: Any, after: Any, restored: Any, right: bool
) -> None:
    unproven = salt["pgproof.unproven"]({"m": before}, {"m": after}, {"m": restored})
    assert (unproven == []) is right


def test_no_table_but_the_known_ones_reaches_a_statement(salt: dict[str, Any]) -> None:
    with pytest.raises(CommandExecutionError, match="not one of the tables"):
        salt["synapse_fingerprint.statement"](["count:users; DROP TABLE users"])


@pytest.mark.parametrize("path", ["relative/path", "/tmp/a b", "/tmp/x'y", "/tmp/../etc"])
def test_an_unsafe_backup_folder_is_refused(salt: dict[str, Any], path: str) -> None:
    with pytest.raises(CommandExecutionError, match="absolute path"):
        salt["pgcluster.make_directory"](path, "root")


@pytest.mark.parametrize("value", ["two\nlines", "secret with blanks "])
def test_a_setting_that_a_service_file_cannot_carry_is_refused(
    salt: dict[str, Any], value: str
) -> None:
    with (
        pytest.raises(CommandExecutionError, match="password") as refused,
        salt["pgcluster.service"]({"params": {"password": value}}),
    ):
        pass
    assert value not in str(refused.value)


def test_a_program_that_does_not_end_is_stopped_and_named(salt: dict[str, Any]) -> None:
    with pytest.raises(CommandExecutionError, match=r"a nap: sleep was still running after 0\.2 s"):
        salt["pgcluster.run"](["sleep", "60"], timeout=0.2, what="a nap")


def test_clusters_are_found_by_name_and_port(salt: dict[str, Any]) -> None:
    locate = salt["pgcluster.locate"]
    rows = [
        {"name": f"15/{n}", "port": p, "status": s, "owner": "postgres", "data": f"/nowhere/{n}"}
        for n, p, s in (("main", 5432, "online"), ("second", 5433, "down"))
    ]
    locate.__globals__["_debian_clusters"] = lambda: rows
    assert locate()["port"] == 5432
    assert locate("15/second")["bindir"] == "/usr/lib/postgresql/15/bin"
    assert locate({"port": 5433})["data"] == "/nowhere/second"
    with pytest.raises(CommandExecutionError, match="15/main"):
        locate("13/main")
