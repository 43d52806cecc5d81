"""The program that ports: its checksum sees what differs, and nothing that does not."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "formulas" / "synapse" / "files" / "port.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("port_program", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PORT = load()


def checksum(*rows: tuple[Any, ...], truths: tuple[int, ...] = ()) -> tuple[int, int]:
    made = PORT._Sum(set(truths))
    for row in rows:
        made.add(row)
    return made.rows, made.total


def test_both_engines_words_for_the_same_row_are_equal() -> None:
    # SQLite: truths are numbers, whole numbers may be floats; PostgreSQL: bytea is a memoryview.
    sqlite = checksum((1, "Räum \U0001f600", b"\x00\xff", 1.0, None, 2.5, None), truths=(0, 4))
    postgresql = checksum((True, "Räum \U0001f600", memoryview(b"\x00\xff"), 1, False, 2.5, None))
    assert sqlite == postgresql


def test_order_does_not_matter_and_content_does() -> None:
    one, two = (1, "a"), (2, "b")
    assert checksum(one, two) == checksum(two, one)
    assert checksum(one, two) != checksum(one, one)
    assert checksum(one) != checksum((1, "A"))
    assert checksum((1, None)) != checksum((1, ""))
    assert checksum((1, "1")) != checksum((1, 1))
    assert checksum(one)[0] == 1


def test_a_row_that_postgresql_cannot_keep_is_counted_apart() -> None:
    made = PORT._Sum(set())
    made.add((1, "a\0b"))
    assert (made.rows, made.total, made.dropped) == (0, 0, 1)


class Engine:
    """One of Synapse's two, by its class."""


class PostgresEngine(Engine):
    """The one that batches."""


def transactions() -> Any:
    """A class like Synapse's LoggingTransaction, which has SQLite's batches one by one."""

    class Transaction:
        def __init__(self, engine: Engine) -> None:
            self.database_engine = engine
            self.done: list[tuple[str, str, list[Any]]] = []

        def executemany(self, sql: str, rows: list[int]) -> None:
            self.done.append(("singly", sql, rows))

        def execute_batch(self, sql: str, rows: list[int]) -> None:
            if isinstance(self.database_engine, PostgresEngine):
                self.done.append(("batch", sql, rows))
            else:
                self.executemany(sql, rows)

        def execute(self, sql: str, parameters: tuple[str, ...] = ()) -> None:
            self.done.append(("execute", sql, list(parameters)))

        def fetchone(self) -> tuple[int] | None:
            return (1,) if "full" in self.done[-1][1] else None

    return Transaction


@pytest.mark.parametrize(("engine", "how"), [(PostgresEngine(), "batch"), (Engine(), "singly")])
def test_only_postgresql_gets_its_rows_in_batches(engine: Engine, how: str) -> None:
    made = transactions()
    PORT._hasten(made, PostgresEngine)
    transaction = made(engine)
    transaction.executemany("INSERT", [1, 2])
    assert transaction.done == [(how, "INSERT", [1, 2])]


def test_only_what_holds_rows_is_truncated() -> None:
    made = transactions()
    PORT._hasten(made, PostgresEngine)
    transaction = made(PostgresEngine())
    transaction.execute("TRUNCATE empty CASCADE")
    transaction.execute("TRUNCATE full CASCADE")
    transaction.execute("DELETE FROM port WHERE name = %s", ("full",))
    assert transaction.done == [
        ("execute", "SELECT 1 FROM empty LIMIT 1", []),
        ("execute", "SELECT 1 FROM full LIMIT 1", []),
        ("execute", "TRUNCATE full CASCADE", []),
        ("execute", "DELETE FROM port WHERE name = %s", ["full"]),
    ]


class Release:
    """A release that says what it does, with a reactor that stands still until it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        program = ModuleType("synapse_port_db")
        program.reactor = SimpleNamespace(run=lambda: self.done.append("ported"))  # type: ignore[attr-defined]
        program.main = self.main  # type: ignore[attr-defined]
        self.program = program
        scripts, database, engines = map(ModuleType, ("scripts", "database", "engines"))
        scripts.synapse_port_db = program  # type: ignore[attr-defined]
        database.LoggingTransaction = transactions()  # type: ignore[attr-defined]
        engines.PostgresEngine = PostgresEngine  # type: ignore[attr-defined]
        for name, module in {
            "synapse": ModuleType("synapse"),
            "synapse._scripts": scripts,
            "synapse.storage": ModuleType("storage"),
            "synapse.storage.database": database,
            "synapse.storage.engines": engines,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(PORT.gc, "freeze", lambda: None)
        monkeypatch.setattr(PORT, "_say", lambda **words: self.done.append(next(iter(words))))
        monkeypatch.setattr(PORT, "_begin", lambda target: self.done.append("begun"))
        monkeypatch.setattr(PORT, "_finish", lambda *words: self.done.append("finished"))
        monkeypatch.setattr(sys, "argv", [])

    def main(self) -> None:
        self.done.append("read")
        self.program.reactor.run()


def test_all_is_loaded_before_it_waits_and_the_target_is_used_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = Release(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    PORT._wait(None, "upcoming.yaml", "homeserver.db")
    assert release.done == ["read", "ready", "begun", "ported", "finished"]
    assert sys.argv[1:] == [
        "--sqlite-database", "homeserver.db", "--postgres-config", "upcoming.yaml",
    ]  # fmt: skip


def test_one_that_is_called_off_has_touched_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit) as end:
        PORT._wait(None, "upcoming.yaml", "homeserver.db")
    assert (end.value.code, release.done) == (0, ["read", "ready"])
