"""What a pass of reconcile sees of the members, and whom it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saltworks import members

from tests import cluster
from tests.render.stages import AFTER_M3
from tests.unit.worker_house import MAIN_URL, URL, Asked, cut, joining


@pytest.mark.parametrize(
    ("dead", "well"),
    [
        (set(), {"sync-1": True, "persister-1": True}),
        ({URL}, {"sync-1": True, "persister-1": False}),
        ({URL, "http://198.19.0.3:8101"}, {"sync-1": False, "persister-1": False}),
        ({URL, "http://198.19.0.3:8101", MAIN_URL}, {}),
    ],
)
def test_the_front_says_of_all_and_of_main_whether_they_answer(
    tmp_path: Path, dead: set[str], well: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = joining(tmp_path)
    house.dead = dead
    said: list[str] = []
    monkeypatch.setattr(members.log, "warning", lambda text, *_: said.append(text))
    tree: Any = house
    assert members.healthy(tree, Asked(house)) == well  # type: ignore[arg-type]
    assert house.calls[0][2] == [URL, "http://198.19.0.3:8101", MAIN_URL]
    assert bool(said) is not bool(well)
    house.silent = {"proxy"}
    assert members.healthy(tree, Asked(house)) == {}  # type: ignore[arg-type]
    assert "nobody's health is known" in said[-1]


def test_while_others_are_told_nobody_is_asked_or_judged(tmp_path: Path) -> None:
    house = cut(tmp_path)
    tree: Any = house
    found = members.gathered(tree, house, lambda: pytest.fail("asked"), 0.0)  # type: ignore[arg-type]
    assert (found.untold, found.healthy) == ({"persister-2"}, {})


def test_those_are_asked_whether_they_answer_of_whom_it_matters(tmp_path: Path) -> None:
    house = joining(tmp_path).add(
        cluster.member("sync-2", "sync", 4, "draining"), cluster.member("sync-3", "sync", 5)
    )
    failed = {"failures": 1, "error": "x", "not_before": 7.0}
    house.store.rows.update(
        late={"sync-1": {"services": [], "not_before": 5.0}, "sync-9": {"services": []}},
        joins={
            "sync-1": {"generation": 1, "finished": 1.0, "leaving": {**failed, "what": "lose"}},
            "sync-2": {"leaving": {**failed, "what": "leave"}},
            "sync-3": {"generation": 1, "finished": 1.0},
            "persister-1": {"generation": 1, "finished": 1.0},
        },
    )
    asked: list[str] = []

    def answering(minions: list[str], *_: Any) -> set[str]:
        asked.extend(minions)
        return set(minions)

    vars(house)["answering"] = answering
    vars(house)["fingerprints"] = lambda names: {}
    tree: Any = house
    found = members.gathered(tree, tree, lambda: tree, 0.0)
    assert asked == ["persister-2", "sync-1", "sync-2"]
    assert found.late == {"sync-1": 5.0}
    assert (found.not_left_before, found.not_lost_before) == ({"sync-2": 7.0}, {"sync-1": 7.0})
    assert not found.barred
    assert not found.untold
    house.store.rows["placement"] = {**AFTER_M3}
    asked.clear()
    found = members.gathered(tree, tree, lambda: tree, 0.0)
    assert set(found.barred) == set(found.members)
    assert asked == ["persister-2", "sync-2"]
