"""Measurements are shown and kept: every soak and bench, by a name that the README tells."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import results
from tests.lab.driver import PROJECT, checks

MEASURING = sorted(
    path
    for path in (PROJECT / "tests").rglob("test_*.py")
    if re.search(r"^pytestmark = .*mark\.(soak|bench)\b", path.read_text(), re.M)
)


def test_a_table_is_kept_with_its_date_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    written = results.show("some", "Some figures", ["what", "seconds"], [["a window", "2.50"]])
    assert written == tmp_path / "results" / "some.md"
    title, _, when, _, *table = written.read_text().splitlines()
    assert title == "# Some figures"
    shape = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d UTC, {os.cpu_count()} cores, \d+ GiB, load \d+\.\d"
    assert re.fullmatch(shape, when)
    assert table == ["| what | seconds |", "| --- | --- |", "| a window | 2.50 |"]
    assert "a window" in capsys.readouterr().out


def test_there_are_a_soak_and_benches() -> None:
    tests = PROJECT / "tests"
    assert {path.relative_to(tests).parts[0] for path in MEASURING} == {"bench", "lab"}


@pytest.mark.parametrize("path", MEASURING, ids=lambda path: path.stem)
def test_what_measures_keeps_its_table_where_the_readme_says(path: Path) -> None:
    names = re.findall(r"results\.show\(\s*\"([\w-]+)\"", path.read_text())
    assert names
    readme = (PROJECT / "README.md").read_text()
    assert [name for name in names if f"`{name}.md`" not in readme] == []


@pytest.mark.parametrize(("only", "shown"), [("soak", True), ("bench", True), (None, False)])
def test_what_is_measured_is_shown(only: str | None, shown: bool) -> None:
    lab: Any = SimpleNamespace(network=SimpleNamespace(inside=list))
    assert ("--capture=no" in checks.pytest_command(lab, only, [])) is shown
