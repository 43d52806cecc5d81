"""The program that ports: its checksum sees what differs, and nothing that does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

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
