"""Measurements are shown and kept: every soak and bench, by a name that the README tells."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import results
from tests.lab.driver import PROJECT, checks, hostcheck

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


@pytest.mark.parametrize(
    ("beside", "again", "machines", "seconds", "code"),
    [
        *[(0, None, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 0, 0, 1), (1, 5, 0, 0, 1)],
        *[(2, None, 0, 0, 1), (1, 0, 1, 0, 1), (0, None, 1, 0, 1), (0, None, -9, 0, 1)],
        *[(-9, None, 0, 0, 1), (0, None, 0, 1, 1), (1, 0, 0, 1, 1)],
    ],
)
def test_what_failed_beside_the_machines_is_judged_by_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: int, again: int | None,
    machines: int, seconds: int, code: int,
) -> None:  # fmt: skip
    ran: list[list[str]] = []

    def run(command: list[str], _: Any) -> int:
        ran.append(command)
        if "and alone" in str(command):
            return seconds
        return machines if len(ran) == 1 else int(again or 0)

    @contextlib.contextmanager
    def others(*_: Any) -> Iterator[Any]:
        file = tmp_path / "beside/v/cache/lastfailed"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"tests/unit/test_a.py::test_a": true}')
        yield SimpleNamespace(wait=lambda: None, returncode=beside)

    (tmp_path / "beside.log").touch()
    settings = SimpleNamespace(root=tmp_path, logs=tmp_path, netns="x")
    lab: Any = SimpleNamespace(
        settings=settings, any_running=None, network=SimpleNamespace(inside=list),
        mirror=SimpleNamespace(ready=lambda: True),
    )  # fmt: skip
    monkeypatch.setattr(hostcheck, "check", lambda *_, **__: None)
    monkeypatch.setattr(checks, "_run", run)
    monkeypatch.setattr(checks, "beside", others)
    assert checks.test(lab, lambda: None, None, []) == code
    assert len(ran) == (2 if again is None else 3)
    assert ("tests/lab" in ran[0], "tests/unit" in ran[0]) == (True, False)
    # What is about seconds runs once, with nothing beside it.
    assert ["and alone" in str(command) for command in ran] == [False] * (len(ran) - 1) + [True]
    if again is not None:
        assert "--last-failed" in ran[1]
        assert ("tests/lab" in ran[1], "tests/unit" in ran[1]) == (False, True)


@pytest.mark.parametrize(("only", "shown"), [("soak", True), ("bench", True), (None, False)])
def test_what_is_measured_is_shown(only: str | None, shown: bool) -> None:
    lab: Any = SimpleNamespace(network=SimpleNamespace(inside=list))
    assert ("--capture=no" in checks.pytest_command(lab, only, [])) is shown
