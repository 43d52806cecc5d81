"""``media.status``: what is shown of store and caches, what is wrong, and whom the runner asks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from saltworks import media_report, plan
from saltworks.minions import MachineError

from tests import cluster
from tests.unit.house import House

NOW = 1_800_000_000.0
GIB, MIB = 1 << 30, 1 << 20
REPORT: dict[str, Any] = {
    "files": 12, "bytes": 3 * MIB, "unverified": 11, "unverified_bytes": 2 * MIB,
    "cache": {"keep_bytes": 10 * GIB, "keep_seconds": 30 * 86400, "idle_seconds": 3600},
    "free": 50 * GIB, "timer": "active", "service": "success",
    "last": {"at": NOW - 600, "pruned": 4, "bytes": MIB, "broken": 0, "missing": 0,
             "left_bytes": 2 * MIB, "error": ""},
}
USAGE = {"objects": 40, "bytes": 9 * MIB, "requests": 7, "whole": True, "seconds": 0.4,
         "asked": "synapse"}


def wrong(change: dict[str, Any], prunes: bool = True) -> list[str]:
    """Problems of a machine whose report is changed so; of ``last`` only what is given."""
    row = copy.deepcopy(REPORT)
    last = change.pop("last", {})
    row |= change
    row["last"] = None if last is None else {**row["last"], **last}
    found = media_report.problems("storage", {"media-1": row}, USAGE, prunes, NOW)
    return [str(problem) for problem in found]


def test_all_is_well_and_shown() -> None:
    shown = media_report.table("storage", {"synapse": REPORT}, USAGE, True, NOW)
    assert shown == {
        "store": {"machine": "storage", "objects": 40, "bytes": 9 * MIB, "whole": True,
                  "asked": "synapse", "requests": 7, "seconds": 0.4},
        "caches": {"synapse": {
            "files": 12, "bytes": 3 * MIB, "keep_bytes": 10 * GIB, "keep_days": 30.0,
            "unverified": 11, "unverified_bytes": 2 * MIB, "timer": "active",
            "last_prune": {"at": "2027-01-15 07:50:00 UTC", "files": 4, "bytes": MIB, "error": ""},
        }},
        "pruning": True,
        "problems": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"last": None},
        # A run takes as long as it must.
        {"last": {"at": NOW - 90000}, "service": "running"},
    ],
)
def test_what_is_new_or_at_work_is_well(change: dict[str, Any]) -> None:
    assert wrong(change) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timer": "inactive"}, ["timer is inactive: nothing bounds", "salt media-1 state.apply"]),
        ({"last": {"at": NOW - 90000}}, ["was pruned last at 2027-01-14 ", "journalctl -u"]),
        ({"last": {"error": "2 files differ"}, "service": "exit-code"},
         ["pruning: 2 files differ", "docs/m3-media.md"]),
        ({"service": "timeout"}, ["did not end: timeout", "journalctl -u"]),
        ({"service": "oom-kill", "last": None}, ["did not end: oom-kill"]),
        ({"last": {"left_bytes": 11 * GIB}}, ["11.0 GiB stayed of at most 10.0", "cache_bytes"]),
        ({"free": 2 * GIB}, ["may take 10.0 GiB, and the disk has room for 2.0", "larger disk"]),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_one_line_with_the_next_step(
    change: dict[str, Any], words: list[str]
) -> None:
    (line,) = wrong(change)
    for word in ("media-1: ", " -> ", *words):
        assert word in line


def test_on_the_way_back_nobody_misses_the_timer() -> None:
    assert wrong({"timer": "inactive", "last": {"at": NOW - 90000}}, prunes=False) == []


class Lab(House):
    """Machines of a cluster with two media workers."""

    def __init__(self, *silent: str, media: str = "storage") -> None:
        super().__init__("media")
        self.media, self.silent = media, silent
        self.asked: list[tuple[Any, ...]] = []
        self.usage: Any = {key: value for key, value in USAGE.items() if key != "asked"}
        vars(self.module).update(__opts__={}, Machines=lambda opts: self)

    def map(self) -> Any:
        return cluster.WORKER_MAP

    def placement(self, cmap: Any) -> plan.Placement:
        rows = cluster.members({"media": 2, "sync": 1})
        return plan.Placement(
            "synapse", True, "proxy", media=self.media, redis="redis", members=rows
        )

    def calls(self, names: Sequence[str], function: str, *args: Any, **bounds: Any) -> Any:
        assert bounds["bound"] <= 45
        assert names or function.startswith("saltutil.")
        self.asked.append((function, *names))
        row: Any = copy.deepcopy(REPORT) if function == "media_store.report" else []
        return {
            name: MachineError(f"{name} did not answer") if name in self.silent else row
            for name in names
        }

    def call(self, minion: str, function: str, *args: Any, **bounds: Any) -> Any:
        assert bounds["bound"] == args[1] + 30
        self.asked.append((function, minion, *args))
        if isinstance(self.usage, MachineError):
            raise self.usage
        return self.usage


def test_each_machine_with_a_cache_is_asked_and_one_of_them_about_the_store() -> None:
    lab = Lab()
    said = lab.module.status()
    assert list(said["caches"]) == ["synapse", "media-1", "media-2"]
    assert (said["store"]["objects"], said["store"]["asked"]) == (40, "synapse")
    assert lab.asked[-2:] == [
        ("media_store.report", "synapse", "media-1", "media-2"),
        ("media_store.usage", "synapse", "synapse", 20.0),
    ]


def test_a_machine_that_is_away_is_named_and_not_waited_for_twice() -> None:
    lab = Lab("synapse")
    said = lab.module.status(seconds=5)
    assert said["caches"]["synapse"] == {"error": "synapse did not answer"}
    assert "synapse: synapse did not answer -> salt synapse test.ping" in said["problems"]
    assert [row for row in lab.asked if "synapse" in row[1:2]] == [
        ("saltutil.sync_states", "synapse", "media-1", "media-2")
    ]
    assert said["store"]["asked"] == "media-1"


def test_a_store_that_is_away_is_named() -> None:
    lab = Lab()
    lab.usage = MachineError("the store does not list")
    said = lab.module.status()
    assert said["store"] == {"machine": "storage"}
    assert any(row.startswith("storage: the store does not list -> ") for row in said["problems"])


def test_when_nobody_answers_all_of_that_is_said() -> None:
    said = Lab("synapse", "media-1", "media-2").module.status()
    assert len(said["problems"]) == 4
    assert "no machine with its keys could be asked" in " ".join(said["problems"])


def test_before_the_media_have_moved_there_is_nothing_to_say() -> None:
    answer = Lab(media="").module.status()
    assert answer["retcode"] == 1
    assert "have no store yet -> run salt-run state.orchestrate orch.m3.media" in answer["data"]
