"""The runner ``switch``: the short window before a copy, needed once, and ended by the next run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from saltworks import plan

from tests.render.stages import AFTER_M2, MAP
from tests.unit.house import House

OLDER = copy.deepcopy(MAP)
OLDER["synapse"]["database"]["version"] = 14
UPCOMING = {**AFTER_M2, "upcoming": {"database": "database"}}


class Lab(House):
    """Machines that answer, an old PostgreSQL that wants a restart or not, and a map."""

    def __init__(
        self, cmap: dict[str, Any] = OLDER, wants: bool = True, door: str = "open", **more: Any
    ) -> None:
        super().__init__("switch", placement={**UPCOMING, **more}, milestones={})
        self.cmap, self.wants, self.door = cmap, wants, door
        self.calls: list[str] = []
        vars(self.module)["__opts__"] = {}
        vars(self.module)["Machines"] = lambda opts: self

    def map(self) -> Any:
        return self.cmap

    def placement(self, cmap: Any) -> plan.Placement:
        return plan.Placement.recorded(cmap, self.store.rows["placement"])

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(f"{minion} {function}")
        if function == "door.status":
            return {"state": self.door, "target": "synapse" if self.door == "open" else None}
        return self.wants if function == "pgpublish.wants_restart" else {"seconds": 0.1}

    def left(self) -> tuple[Any, Any]:
        row = self.store.rows["placement"]
        return row.get("moving"), row.get("held")


WINDOW = [
    "proxy door.close", "synapse synapse_move.leave", "legacy pgpublish.enable",
    "synapse synapse_move.arrive", "proxy door.open",
]  # fmt: skip


def test_the_old_server_is_restarted_behind_a_shut_door() -> None:
    lab = Lab()
    assert lab.module.hold("database")["changed"]
    assert lab.calls == [
        "legacy pgpublish.wants_restart", "proxy door.status", "legacy pgpublish.checkpoint",
        "proxy door.announce", *WINDOW,
    ]  # fmt: skip
    assert lab.left() == (False, "")


def test_nobody_waits_for_a_restart_that_is_not_needed() -> None:
    lab = Lab(wants=False)
    assert lab.module.hold("database") == {"changed": False}
    assert lab.calls == ["legacy pgpublish.wants_restart"]
    for other in (Lab(MAP), Lab(moving=True, door="closed")):
        assert other.module.hold("database") == {"changed": False}
        assert other.calls == [], "the window of the move itself is the switch's"


def test_a_record_left_by_a_rollback_does_not_hide_that_a_restart_is_needed() -> None:
    """It ends the window of a dead run as its own, and opens the door."""
    lab = Lab(wants=True, moving=False, held="database")
    assert lab.module.hold("database")["changed"]
    assert "legacy pgpublish.enable" in lab.calls
    assert lab.left() == (False, "")


def test_a_window_that_a_dead_run_left_open_is_ended() -> None:
    lab = Lab(wants=False, door="closed", moving=True, held="database")
    assert lab.module.hold("database")["changed"]
    assert lab.calls == ["proxy door.status", *WINDOW]
    assert lab.left() == (False, "")


@pytest.mark.parametrize("door", ["open", "closed"])
def test_a_run_that_died_before_the_door_opened_is_ended_without_another_restart(door: str) -> None:
    lab = Lab(wants=False, door=door, moving=False, held="database")
    assert lab.module.hold("database")["changed"] is (door == "closed")
    assert "legacy pgpublish.enable" not in lab.calls
    assert "legacy pgpublish.disable" not in lab.calls
    assert ("proxy door.open" in lab.calls) is (door == "closed")
    assert lab.left() == (False, "")


def test_a_rollback_out_of_the_short_window_undoes_that_and_opens_the_door() -> None:
    lab = Lab(door="closed", moving=True, held="database")
    assert lab.module.back("database")["changed"]
    assert lab.calls == [
        "proxy door.status", "synapse synapse_move.stop", "legacy pgpublish.disable",
        "synapse synapse_move.arrive", "proxy door.open",
    ]  # fmt: skip
    assert lab.left() == (False, "")
    assert lab.store.rows["placement"]["upcoming"] == {}
