"""A promotion that does not end in time, and what becomes of it when the switch is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

FENCED = {"system_identifier": "7", "moment": "0/5", "checkpoint": "0/5", "timeline": 1}


class Standby:
    """One whose promotion was begun, and pends."""

    def __init__(self, data: Path) -> None:
        self.signal, self.runs, self.recovers = data / "standby.signal", True, True
        self.signal.touch()
        self.did: list[str] = []
        self.ends_before_it_stops = False
        at = {"data": str(data)}
        rules = vars(load("_modules", "saltworks_pgserver"))
        self.module = load(
            "_modules",
            "saltworks_pgstandby",
            {
                **{f"pgserver.{name}": rules[name] for name in ("must_say_why", "stands_down")},
                "pgserver.stands": rules["stands"],
                "pgserver.recorded": lambda at, name: {"moment": "0/5"} if name[0] == "p" else None,
                "pgserver.turned": lambda at, name, value: None,
                "pgserver.turned_back": lambda at, name, **more: self.did.append(
                    f"{name} back {' '.join(more)}".strip()
                ),
                "pgserver.write": lambda at, path, text: self.did.append("write"),
                "pgserver.sql": self.sql,
                "pgserver.stop": self.stop,
                "pgcluster.locate": lambda cluster: at,
                "pgcluster.condition": lambda data: "standby" if self.runs else "gone",
                "pgcluster.wait_until": lambda check, *more: check(),
                "pgcopy.own": lambda at: {},
            },
        )

    def sql(self, at: Any, script: str, *more: Any) -> list[Any]:
        assert self.runs
        if "pg_promote" in script:
            return [False]
        assert "pg_is_in_recovery" in script, "nothing is asked behind a promotion that failed"
        return [{"recovery": self.recovers, "system_identifier": "7", "replayed": "0/6"}]

    def stop(self, at: Any, mode: str, seconds: float) -> None:
        self.did.append(f"stop {mode}")
        if self.runs and self.ends_before_it_stops:
            self.signal.unlink()
        self.runs = False


@pytest.fixture
def standby(tmp_path: Path) -> Standby:
    return Standby(tmp_path)


def test_a_promotion_that_does_not_end_in_time_is_a_failure(standby: Standby) -> None:
    with pytest.raises(CommandExecutionError, match=r"within 30 s.*log.*pgstandby\.status"):
        standby.module.promote("15/main", "synapse", FENCED, False)


def test_one_that_pends_is_stopped_before_it_is_called_undone(standby: Standby) -> None:
    said = standby.module.stand_down("15/main", taken_back=True)
    assert "was not promoted yet, is fenced as before, and stopped" in said
    assert standby.did == ["stop immediate", "promoted back"]


def test_one_that_ends_before_it_stops_is_fenced_as_any_that_was_promoted(
    standby: Standby,
) -> None:
    standby.ends_before_it_stops = True
    assert "is fenced again" in standby.module.stand_down("15/main", taken_back=True)
    assert standby.did == ["stop immediate", "promoted back parted", "write", "stop immediate"]


def test_a_receiver_that_streams_for_a_moment_and_ends_is_not_near() -> None:
    """It says so before it hears that the WAL is gone which it wants, and begins anew."""
    near, away = {"receiving": "streaming", "behind": 0}, {"receiving": None, "behind": 0}
    looks = iter([near, away, near, near, away, near, near, near])
    seen: list[Any] = []

    def wait_until(check: Any, *_: Any) -> bool:
        while not check():
            pass
        return True

    module: Any = load(
        "_modules",
        "saltworks_pgstandby",
        {"pgcluster.locate": lambda cluster: {}, "pgcluster.wait_until": wait_until},
    )

    def status(at: Any) -> Any:
        seen.append(next(looks))
        return seen[-1]

    vars(module)["status"] = status
    assert module.near() is True
    assert len(seen) == 8
