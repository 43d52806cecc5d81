"""The table at the end of `make lab`, and how to try the server, on terminals of any width."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab import milestone_table, milestones

SEED = {
    "users": [
        {"localpart": "clara", "password": "clara-3", "kind": "local", "deactivated": False},
        {"localpart": "goran", "password": "goran-blå-7", "kind": "ldap", "deactivated": False},
        {"localpart": "erik", "password": "erik-5", "kind": "local", "deactivated": True},
    ]
}


Closing = Callable[..., list[str]]


def report(read_back: dict[str, Any]) -> dict[str, Any]:
    return {
        "acknowledged": 10,
        "delivered": 10,
        "lost": 0,
        "duplicated": 0,
        "failed_requests": 0,
        "worst_wait_seconds": 3.21,
        "read_back": {"explained": {}, "unexplained": [], **read_back},
    }


@pytest.fixture
def closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Closing:
    seed = tmp_path / "seed.json"
    seed.write_text(json.dumps(SEED))
    lab: Any = SimpleNamespace(settings=SimpleNamespace(netns="saltworks", ca=".lab/ca.pem"))

    def shown(**reports: dict[str, Any]) -> list[str]:
        monkeypatch.setattr(milestones, "report_of", lambda _, name: reports.get(name))
        milestone_table.show_closing(lab, seed)
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()

    return shown


def test_the_table_says_what_was_allowed(closing: Closing) -> None:
    lines = closing(
        m1=report({"explained": {"one_rule": 3, "another": 4}}),
        m2=report({}),
        m3=report({"explained": {"one_rule": 1}, "unexplained": ["x / y: 1 -> 2"]}),
    )
    seen = {line.split()[1]: line.strip(" │").rpartition("│")[2].strip() for line in lines[4:7]}
    assert seen == {"M1": "equal but for 7 allowed", "M2": "equal", "M3": "differs"}


def test_a_milestone_that_was_not_run_says_so(closing: Closing) -> None:
    assert [line for line in closing() if "not run yet" in line]


@pytest.mark.parametrize("columns", [80, 60, 200])
def test_a_narrow_terminal_gets_one_user_a_line(
    closing: Closing, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = closing(m1=report({"explained": {"one_rule": 15958}}))
    assert "    clara  clara-3      local" in lines
    assert "    goran  goran-blå-7  ldap" in lines
    assert not [line for line in lines if "erik" in line]
    table = [line for line in lines if line[:1] in "┏┡├│└┃"]
    assert max(map(len, table)) <= min(columns, milestone_table.WIDTH)
