"""Debian's unit lets go of a server; a way back that can not be told from the other is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


class Unit:
    """Debian's cluster 15/main with its unit, which runs or not."""

    def __init__(self, folder: Path, runs: bool = True, others: list[dict[str, str]] | None = None):
        self.told: list[str] = []
        self.folder = folder
        self.at = {"unit": "postgresql@15-main", "config": str(folder), "data": f"{folder}/data"}
        self.module: Any = load("_modules", "saltworks_patroni_machine", {
            "service.status": lambda unit: runs,
            "pgcluster.others": lambda at: others or [],
            "pgcluster.run": lambda argv, **words: self.told.append(" ".join(argv[1:])),
        })
        vars(self.module)["_drop_in"] = lambda at: str(folder / "unit.d" / "patroni.conf")

    def let_go(self, test: bool = False) -> list[str]:
        done: list[str] = self.module._let_go(self.at, test)
        return done


def test_the_unit_is_stopped_only_once_it_would_not_stop_the_server(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    assert unit.let_go() == [
        f"{tmp_path}/start.conf", f"{tmp_path}/unit.d/patroni.conf", "postgresql@15-main",
    ]  # fmt: skip
    assert unit.told == [
        "daemon-reload", "stop postgresql@15-main", "disable --now postgresql",
    ]  # fmt: skip
    lines = (tmp_path / "unit.d" / "patroni.conf").read_text().splitlines()
    assert {"ExecStop=", "KillMode=none", "SendSIGKILL=no"} <= set(lines)
    assert (tmp_path / "start.conf").read_text().endswith("\ndisabled\n")


def test_a_second_time_nothing_is_told(tmp_path: Path) -> None:
    Unit(tmp_path).let_go()
    again = Unit(tmp_path, runs=False)
    assert (again.let_go(), again.told) == ([], [])


def test_a_test_run_only_tells(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    assert len(unit.let_go(True)) == 3
    assert unit.told == []
    assert list(tmp_path.iterdir()) == []


def test_debians_umbrella_stays_where_another_cluster_runs(tmp_path: Path) -> None:
    unit = Unit(tmp_path, others=[{"status": "online"}])
    unit.let_go()
    assert unit.told == ["daemon-reload", "stop postgresql@15-main"]


def test_what_is_refused_is_not_let_go(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    rules = load("_modules", "saltworks_patroni_rules")
    unit.module.__salt__.update({
        "pgcluster.locate": lambda cluster: unit.at, "patroni_rules.settle": rules.settle,
    })
    facts = {"initialized": "1", "own": "2", "following": False, "filled": ["base/16385"]}
    vars(unit.module)["found"] = lambda at, config: facts
    with pytest.raises(CommandExecutionError, match="base/16385"):
        unit.module.settle("15/main", False)
    assert unit.told == []
