"""The notice that connections end: told for as long as it was asked for, whoever withdraws it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.modules.minion_modules import load


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = load("_modules", "nginx_config")
    monkeypatch.setattr(module, "LEAVING", str(tmp_path / "leaving"))
    module.clock = 0.0

    def sleep(seconds: float) -> None:
        module.clock += seconds
        if module.clock > module.withdrawn:
            module.withdrawn = float("inf")
            module.withdraw()

    def now() -> float:
        # Files have the real time.
        here = os.path.exists(module.LEAVING)
        made = os.stat(module.LEAVING).st_mtime if here else 0.0
        return made + float(module.clock - module.since)

    module.since, module.withdrawn = 0.0, float("inf")
    module.time = SimpleNamespace(monotonic=lambda: module.clock, time=now, sleep=sleep)
    return module


def test_it_is_told_for_as_long_as_was_asked_and_what_was_told_counts(nginx: Any) -> None:
    assert nginx.notice(2) == pytest.approx(2, abs=0.11)
    assert nginx.notice(2) == 0
    nginx.withdraw()
    nginx.since = nginx.clock
    assert nginx.notice(0) == 0
    nginx.clock += 1.5
    assert nginx.notice(2) == pytest.approx(0.5, abs=0.11)


def test_one_that_is_withdrawn_meanwhile_begins_anew(nginx: Any) -> None:
    nginx.withdrawn = 1.5
    # The clock of its file is that of the first one, so it goes by the time that it took.
    real = nginx.withdraw

    def withdraw() -> None:
        real()
        nginx.since = nginx.clock

    nginx.withdraw = withdraw
    assert nginx.notice(2) == pytest.approx(3.5, abs=0.3)
