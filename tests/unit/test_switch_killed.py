"""A window whose conductor is killed at any point: the next run, either way, leaves all whole."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from saltworks import parts, plan
from saltworks.minions import MachineError

from tests.render.stages import AFTER_M2, MAP
from tests.unit.house import Records
from tests.unit.test_switch import Runner

#: Where a part was found: the value in the record and of Synapse's configuration.
FOUND = ""


class Killed(BaseException):
    """The conductor's process is gone."""


class World(Records):
    """The machines of a part's window, and the master's records; the conductor dies at a step.

    Here the part is auth, whose directory is writable on one of two machines.

    dies_at: number of the step, a call or a write of the record; None: never.
    late: it dies when the step has done its work.
    """

    PART, MOVED = "auth", "directory"

    def __init__(self, place: str) -> None:
        super().__init__(placement={**AFTER_M2, self.PART: place, "moving": False, "upcoming": {}})
        self.dies_at: int | None = None
        self.late = False
        self.steps = 0
        self.door = "open"
        self.runs: str | None = place
        self.config, self.previous, self.upcoming = place, "", ""
        self.kept_previous = self.kept_upcoming = False
        self.writable = {"legacy": place == FOUND, self.MOVED: place == self.MOVED}

    @property
    def placement(self) -> dict[str, Any]:
        row = self.rows["placement"]
        assert isinstance(row, dict)
        return row

    def step(self, act: Any) -> Any:
        """Do it, unless the conductor dies here."""
        self.steps += 1
        dies = self.steps == self.dies_at
        if dies and not self.late:
            raise Killed
        answer = act()
        self.check()
        if dies:
            raise Killed
        return answer

    def store(self, bank: str, key: str, data: Any) -> None:
        self.step(lambda: self.rows.update({key: data}))

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        act = getattr(self, f"_{function.replace('.', '_')}")
        return self.step(lambda: act(minion, *args, **{**kwargs, "timeout": None}))

    def check(self) -> None:
        """Who comes through the door is served by the place that is recorded."""
        if self.door == "open" and not self.placement["moving"]:
            assert self.runs == self.placement[self.PART]
            assert self.writable[self.runs or "legacy"]

    def prepare(self, place: str) -> None:
        """What an orchestration does before its window."""
        self.placement["upcoming"] = {self.PART: place}
        # As formulas/synapse/configured.sls renders them.
        self.config = self.placement[self.PART]
        self.upcoming, self.kept_upcoming = place, True
        self.kept_previous = self.kept_previous and self.placement["moving"]

    def anew(self, place: str) -> None:
        """What the orchestration of a next run does before it comes to the window, if anything."""
        placement = plan.Placement.recorded(MAP, self.placement)
        if not parts.resumed(self.PART, place, placement):
            self.prepare(place)

    def _door_status(self, minion: str, **_: Any) -> dict[str, Any]:
        return {"state": self.door, "target": "synapse" if self.door == "open" else None}

    def _door_announce(self, minion: str, seconds: int, **_: Any) -> float:
        return float(seconds)

    def _door_close(self, minion: str, **_: Any) -> dict[str, float]:
        assert self.placement["moving"]
        self.door = "closed"
        return {"seconds": 0.1}

    def _door_open(self, minion: str, target: str, **_: Any) -> dict[str, float]:
        assert self.runs is not None
        self.door = "open"
        return {"seconds": 0.1}

    def _synapse_move_leave(self, minion: str, **_: Any) -> dict[str, float]:
        assert self.door == "closed", "stopped under people's eyes"
        self.runs = None
        return {}

    def _synapse_move_stop(self, minion: str, service: str, **_: Any) -> bool:
        assert self.door == "closed", "stopped under people's eyes"
        self.runs = None
        return True

    def _synapse_move_arrive(self, minion: str, config: str = "", **_: Any) -> dict[str, float]:
        if config and self.upcoming != self.config:
            assert self.kept_upcoming
            self.previous, self.kept_previous = self.config, True
            self.config = self.upcoming
        self.runs = self.config if self.runs is None else self.runs
        return {}

    def _synapse_move_put_back(self, minion: str, config: str, **_: Any) -> bool:
        if not self.kept_previous:
            return False
        self.config, self.kept_previous = self.previous, False
        return True

    def _slapd_answers(self, minion: str, **_: Any) -> float:
        return 0.1

    def _slapd_leave(self, minion: str, **_: Any) -> dict[str, Any]:
        assert self.runs is None
        self.writable[minion] = False
        return {}

    def _slapd_take(self, minion: str, **_: Any) -> dict[str, Any]:
        self.writable[minion] = True
        return {}

    def _slapd_open(self, minion: str, **_: Any) -> bool:
        self.writable[minion] = True
        return True


def switched(world: World, place: str, dies_at: int | None = None, late: bool = False) -> Any:
    """The runner's own answer; Killed when the conductor dies."""
    runner = Runner(world)  # type: ignore[arg-type]
    runner.store = world
    world.steps, world.dies_at, world.late = 0, dies_at, late
    return (runner.module.back if place == FOUND else runner.module.to)(world.PART)


def killed(world: World, place: str, late: bool) -> Iterator[World]:
    """What is left of a world for each step at which the way to a place may die."""
    for number in itertools.count(1):
        left = copy.deepcopy(world)
        left.anew(place)
        try:
            switched(left, place, number, late)
        except Killed:
            yield left
            continue
        return


def assert_whole(world: World, place: str, answer: Any) -> None:
    assert "retcode" not in answer, answer
    assert (world.door, world.runs, world.config) == ("open", place, place)
    assert (world.placement[world.PART], world.placement["moving"]) == (place, False)
    assert world.writable[place or "legacy"]


class Servers(World):
    """Two PostgreSQL servers, of which one follows; see ``saltworks_pgstandby.py``.

    away: the old machine does not answer when it is to be fenced.
    """

    PART, MOVED = "database", "database"

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.stands = {"legacy": "follower", "database": "primary"}
        if place == FOUND:
            self.stands = {"legacy": "primary", "database": "follower"}
        self.away = self.fails = ""

    def check(self) -> None:
        self.writable = {name: row == "primary" for name, row in self.stands.items()}
        super().check()
        settled = self.door == "open" and not self.placement["moving"]
        if settled and self.placement["database"] and not self.away:
            assert not self.writable["legacy"], "it takes writes that nobody sees"

    def prepare(self, place: str) -> None:
        super().prepare(place)
        if self.placement["moving"]:
            return
        # Highstate and roles.database.copied, or copied_back.
        old, new = ("database", "legacy") if self.placement["database"] else ("legacy", "database")
        assert self.stands[old] == "primary"
        self.stands[new], self.away = "follower", ""

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        if function == self.fails or (minion == self.away and function.endswith("stand_down")):
            self.step(lambda: None)
            self.fails = ""
            raise MachineError(f"{minion} {function} failed")
        return super().call(minion, function, *args, **kwargs)

    def _pgstandby_ready(self, minion: str, standby: bool, **_: Any) -> dict[str, Any]:
        if self.stands[minion] != ("follower" if standby else "primary"):
            raise MachineError("the standby does not stream")
        return {}

    def _pgstandby_fence(self, minion: str, **_: Any) -> dict[str, Any]:
        assert self.runs is None
        self.stands[minion] = "fenced"
        return {}

    def _pgstandby_promote(self, minion: str, fenced: Any, **_: Any) -> dict[str, Any]:
        assert "fenced" in self.stands.values()
        if self.stands[minion] == "parted":
            raise MachineError("it has parted from the one that serves")
        self.stands[minion] = "primary"
        return {}

    def _pgstandby_stand_down(self, minion: str, taken_back: bool, **_: Any) -> str:
        assert self.runs is None
        assert taken_back
        if self.stands[minion] != "primary":
            return ""
        self.stands[minion] = "parted"
        return "fenced again"

    def _pgstandby_unfence(self, minion: str, **_: Any) -> bool:
        assert self.stands[minion] in ("fenced", "primary")
        self.stands[minion] = "primary"
        return True


WAYS = pytest.mark.parametrize("late", [False, True])
ENDS = [
    (made, *ends)
    for made in (World, Servers)
    for ends in ((FOUND, made.MOVED), (made.MOVED, FOUND))
]


@WAYS
@pytest.mark.parametrize("onwards", [True, False])
@pytest.mark.parametrize(("made", "old", "new"), ENDS)
def test_the_next_run_finishes_it_or_takes_it_back(
    made: type[World], old: str, new: str, onwards: bool, late: bool
) -> None:
    died, then = 0, new if onwards else old
    for world in killed(made(old), new, late):
        died += 1
        world.anew(then)
        assert_whole(world, then, switched(world, then))
    assert died >= 10


@WAYS
@pytest.mark.parametrize(("made", "old", "new"), ENDS)
def test_by_hand_it_is_finished_or_refused_or_taken_back(
    made: type[World], old: str, new: str, late: bool
) -> None:
    for world in killed(made(old), new, late):
        kept = copy.deepcopy(world)
        assert_whole(world, new, switched(world, new))
        # That it goes back once it has arrived must be prepared.
        if kept.placement[kept.PART] == old:
            assert_whole(kept, old, switched(kept, old))
        else:
            assert "is not prepared" in switched(kept, old)["data"]


@WAYS
@pytest.mark.parametrize(("made", "old", "new"), ENDS)
def test_a_run_after_it_may_be_killed_as_well(
    made: type[World], old: str, new: str, late: bool
) -> None:
    for first in killed(made(old), new, late):
        for second in (old, new):
            for world in killed(first, second, late):
                for third in (old, new):
                    end = copy.deepcopy(world)
                    end.anew(third)
                    answer = switched(end, third)
                    if made is Servers and "retcode" in answer:
                        # Nothing is wrong, but a copy has to be made first.
                        assert re.search("has parted|does not stream", answer["data"])
                        assert (end.door, end.placement["moving"]) == ("open", False)
                        end.anew(third)
                        answer = switched(end, third)
                    assert_whole(end, third, answer)


@pytest.mark.parametrize("away", ["", "legacy"])
@pytest.mark.parametrize("fails", ["synapse_move.arrive", "pgstandby.promote"])
def test_a_rollback_that_failed_may_be_tried_again(fails: str, away: str) -> None:
    """What was promoted is fenced, at once or by the next run; its way back may be killed."""
    for dies_at in itertools.count(1):
        world = Servers(Servers.MOVED)
        world.prepare(FOUND)
        world.fails, world.away = fails, away
        try:
            answer = switched(world, FOUND, dies_at)
        except Killed:
            # Nothing was fenced yet, perhaps; the milestone's run goes on with the way back.
            world.fails = ""
            world.prepare(Servers.MOVED)
            answer = switched(world, Servers.MOVED)
            assert "retcode" not in answer
        else:
            assert "Nothing is lost, everything serves as before" in answer["data"]
            assert ("fenced before anything else" in answer["data"]) is bool(away)
            promoted = fails == "synapse_move.arrive"
            assert ("fenced again" in answer["data"]) is (promoted and not away)
            break
        finally:
            assert world.stands["database"] == "primary" or world.placement["moving"]
        world.prepare(FOUND)
        assert_whole(world, FOUND, switched(world, FOUND))
    world.prepare(FOUND)
    assert_whole(world, FOUND, switched(world, FOUND))
    assert dies_at > 12
