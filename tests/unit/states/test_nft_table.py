"""The state that has nft hold the rules of a file: it asks the kernel, and tells the truth."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.minion_modules import load

NAME = "inet saltworks_firewall"
RULES = 'table inet saltworks_firewall {{\n    comment "saltworks {}"\n}}\n'


class Kernel:
    """What nft lists, and what a reload of the unit makes of it."""

    def __init__(self, listed: str, file: Path, obeys: bool = True) -> None:
        self.listed, self.file, self.obeys, self.reloads = listed, file, obeys, 0

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command == ["nft", "list", "table", "inet", "saltworks_firewall"]
        return subprocess.CompletedProcess(command, int(not self.listed), self.listed, "")

    def reload(self, unit: str) -> None:
        assert unit == "saltworks-firewall"
        self.reloads += 1
        if self.obeys:
            self.listed = self.file.read_text(encoding="utf-8")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.nft"
    path.write_text(RULES.format("ab12"), encoding="utf-8")
    return path


def applied(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, test: bool = False, watch: bool = False
) -> dict[str, Any]:
    state: Any = load("_states", "nft_table", test=test, salt={"service.reload": kernel.reload})
    monkeypatch.setattr(state.subprocess, "run", kernel.run)
    function = state.mod_watch if watch else state.loaded
    done: dict[str, Any] = function(NAME, str(kernel.file), "saltworks-firewall")
    return done


@pytest.mark.parametrize("before", ["", RULES.format("99"), "table inet saltworks_firewall {\n}\n"])
def test_other_rules_or_none_are_replaced_once(
    before: str, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(before, rules)
    done = applied(kernel, monkeypatch)
    assert (done["result"], bool(done["changes"]), kernel.reloads) == (True, True, 1)
    again = applied(kernel, monkeypatch, watch=True)
    assert (again["result"], again["changes"], kernel.reloads) == (True, {}, 1)


def test_in_test_mode_nothing_is_loaded(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("", rules)
    assert applied(kernel, monkeypatch, test=True)["result"] is None
    rules.unlink()
    assert applied(kernel, monkeypatch, test=True)["result"] is None
    assert kernel.reloads == 0
    # The file is written only later, in a test run: that it will be is what is told.
    kernel = Kernel(RULES.format("ab12"), rules)
    assert applied(kernel, monkeypatch, test=True, watch=True)["result"] is None


def test_rules_that_do_not_arrive_are_a_failure(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = applied(Kernel("", rules, obeys=False), monkeypatch)
    assert done["result"] is False
    assert "journalctl -u saltworks-firewall" in done["comment"]
    rules.write_text("table inet saltworks_firewall {\n}\n", encoding="utf-8")
    assert "the table has no comment" in applied(Kernel("", rules), monkeypatch)["comment"]
    rules.unlink()
    assert "is missing" in applied(Kernel("", rules), monkeypatch)["comment"]
