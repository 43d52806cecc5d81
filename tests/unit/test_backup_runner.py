"""The runner ``backup``: whom it asks, what it writes down, when it fails."""

from __future__ import annotations

import copy
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from saltworks import plan
from saltworks.minions import MachineError
from saltworks.registry import Member

from tests.unit.house import House
from tests.unit.test_backups import report

MAP = {"machines": {"database": {"role": "database"}, "standby": {"role": "database"}}}


def fresh(**server: Any) -> dict[str, Any]:
    """As one with a backup of a moment ago, whose WAL goes on until now."""
    said: dict[str, Any] = copy.deepcopy(report(s=server))
    now = int(time.time())
    said["store"]["backups"][0] |= {"start": now - 70, "stop": now - 60}
    said["store"]["stretches"][0] |= {"since": now - 900, "until": now}
    return said


class Lab(House):
    """Database machines that answer."""

    def __init__(self, cmap: Any = MAP, **answers: Any) -> None:
        super().__init__("backup", backups={"gone": {"good": True}})
        self.cmap = cmap
        self.calls_: list[tuple[Any, ...]] = []
        self.asked: list[tuple[str, ...]] = []
        self.reports: dict[str, Any] = {"database": fresh(), "standby": fresh(standby=True)}
        self.answers: dict[str, Any] = {
            "pgbackrest.mark": {"point": "p"},
            "pgbackrest.verify": {"good": True, "why": "restored", "seconds": 3.0},
            "pgbackrest.backup": {"taken": "b1", "bytes": 1, "stored": 1, "seconds": 2.0},
            "pgpitr.restore": {"changed": True, "reached": "r", "kept": "/k",
                               "timeline": {"from": 1, "to": 2}},
            **answers,
        }
        vars(self.module).update(__opts__={}, Machines=lambda opts: self)

    def map(self) -> Any:
        return self.cmap

    def placement(self, cmap: Any) -> plan.Placement:
        """One alone is as M3 has moved it; two are members of a cluster."""
        rows = [
            Member(name, "database", "198.18.0.13", "ready", "2026-11-28T00:00:00Z", 1, "0" * 64)
            for name in cmap["machines"]
        ]
        if len(rows) > 1:
            return plan.Placement("synapse", True, "proxy", clustered=True, members=tuple(rows))
        return plan.Placement("synapse", True, "proxy", database="".join(cmap["machines"]))

    def calls(self, names: list[str], function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.asked.append((function, *names))
        if function.startswith("saltutil."):
            return {name: [] for name in names}
        return {name: self.reports[name] for name in names}

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls_.append((minion, function, *args))
        return self.answers[function]


def test_status_fails_until_a_backup_was_restored() -> None:
    lab = Lab()
    said = lab.module.status()
    assert said["retcode"] == 1
    assert any("no backup that counts" in row for row in said["data"]["problems"])
    assert lab.module.verify().startswith("good: b200 on standby")
    said = lab.module.status()
    assert said["primary"] == "database"
    assert said["problems"] == []
    assert "on standby: good" in said["backups"][0]["restored"]


def test_the_newest_is_compared_with_the_live_database_at_a_point() -> None:
    lab = Lab()
    lab.module.verify()
    assert [row[:2] for row in lab.calls_] == [
        ("database", "pgbackrest.mark"), ("standby", "pgbackrest.verify"),
    ]  # fmt: skip
    assert list(lab.store.rows["backups"]) == ["b200"], "that of a backup that is gone goes"


def test_a_bad_one_is_written_down_and_fails() -> None:
    lab = Lab(**{"pgbackrest.verify": {"good": False, "why": "a checksum", "seconds": 1.0}})
    said = lab.module.verify("database", "b200")
    assert said["retcode"] == 1
    assert "a checksum" in said["data"]
    assert not lab.store.rows["backups"]["b200"]["good"]
    assert lab.calls_[-1][0] == "database"


def test_one_that_is_not_there_is_refused() -> None:
    assert "there is no backup b7" in Lab().module.verify(label="b7")["data"]


@pytest.mark.parametrize(("cmap", "reports", "word"), [
    ({"machines": {}}, {}, "backups begin with m4.database"),
    (None, {}, "backups begin with m4.database"),
    (MAP, {"standby": fresh()}, "not one primary: database, standby"),
    (MAP, {"database": MachineError("no answer")}, "not one primary: no machine"),
])
def test_without_one_primary_nothing_is_done(
    cmap: Any, reports: dict[str, Any], word: str
) -> None:
    lab = Lab(cmap)
    lab.reports |= reports
    for ask in (lab.module.status, lab.module.take, lab.module.verify):
        said = ask()
        assert said["retcode"] == 1
        assert word in said["data"]
    assert lab.calls_ == []


def test_machines_that_are_not_in_the_cluster_are_not_asked() -> None:
    lab = Lab()
    lab.placement = lambda cmap: plan.Placement(  # type: ignore[method-assign]
        "synapse", True, "proxy", database="database"
    )
    assert lab.module.status()["data"]["primary"] == "database"
    assert lab.asked[-1] == ("pgbackrest.report", "database")


def test_one_alone_is_restored_even_when_its_server_is_down() -> None:
    lab = Lab({"machines": {"database": {"role": "database"}}})
    lab.reports["database"]["server"] = {"error": "no answer"}
    stop = lab.reports["database"]["store"]["backups"][0]["stop"]
    target = datetime.fromtimestamp(stop + 5, UTC).isoformat()
    assert "b200" in lab.module.covered(target)["said"]
    said = lab.module.restore(target)
    assert lab.calls_ == [("database", "pgpitr.restore", target, "b200", 1, 1 << 30)]
    assert said["changes"]
    assert "/k" in said["said"]


def test_a_time_that_is_none_asks_nobody() -> None:
    lab = Lab()
    assert lab.module.covered("noon")["retcode"] == 1
    assert lab.module.restore("noon")["retcode"] == 1
    assert lab.calls_ == []
