"""Passes of reconcile: a poke is never lost, and many cost two passes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from saltworks import mutex, passes


class Clock:
    """Time that goes by only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_poke_starts_one_process_and_more_pokes_leave_a_mark(tmp_path: Path) -> None:
    born: list[int] = []
    assert passes.poke(tmp_path, lambda handle: born.append(os.dup(handle)))
    assert passes.wanted(tmp_path)
    for _ in range(50):
        assert not passes.poke(tmp_path, born.append)
    assert len(born) == 1
    made: list[bool] = []

    def once() -> None:
        made.append(passes.wanted(tmp_path))
        if len(made) == 1:
            # In the midst of the first pass: the second is for them all.
            for _ in range(50):
                assert not passes.poke(tmp_path, born.append)

    clock = Clock()
    assert passes.make(tmp_path, once, born[0], clock.sleep, clock) == 2
    assert made == [False, False], "the mark is taken away before, not after"
    assert clock.slept == [passes.SPACING_SECONDS] * 2
    assert passes.poke(tmp_path, lambda handle: None), "it is free again"


def test_a_burst_of_events_that_outlasts_a_quick_pass_is_one_more(tmp_path: Path) -> None:
    """200 in 2 s, while a pass takes no time at all."""
    clock = Clock()
    made: list[float] = []

    def sleep(seconds: float) -> None:
        end = clock.now + seconds
        while clock.now < min(end, 2.0):
            passes.poke(tmp_path, lambda handle: None)
            clock.now += 0.01
        clock.now = end

    def once() -> None:
        made.append(clock.now)
        passes.poke(tmp_path, lambda handle: None) if clock.now < 2.0 else None

    passes.poke(tmp_path, lambda handle: None)
    assert passes.make(tmp_path, once, None, sleep, clock) == 2
    assert made == [0.0, passes.SPACING_SECONDS]


def test_who_pokes_right_after_a_pass_waits_as_long(tmp_path: Path) -> None:
    clock = Clock()
    made: list[float] = []

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if len(made) == 1:
            assert not passes.poke(tmp_path, lambda handle: None), "the same process makes it"

    assert passes.make(tmp_path, lambda: made.append(clock.now), None, sleep, clock) == 2
    assert made == [0.0, passes.SPACING_SECONDS]


def test_who_pokes_between_the_last_look_and_the_letting_go_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, late = mutex.let_go, iter([True])

    def let_go(handle: int) -> None:
        if next(late, False):
            assert not passes.poke(tmp_path, lambda handle: None), "it is still held"
        real(handle)

    monkeypatch.setattr(mutex, "let_go", let_go)
    made: list[int] = []
    clock = Clock()
    assert passes.make(tmp_path, lambda: made.append(1), None, clock.sleep, clock) == 2
    assert len(made) == 2


def test_one_makes_them_and_one_that_dies_lets_go(tmp_path: Path) -> None:
    other = os.open(tmp_path / "reconcile.mutex", os.O_CREAT | os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert passes.make(tmp_path, lambda: pytest.fail("made beside another")) == 0
    assert passes.wanted(tmp_path), "the other makes one more"
    os.close(other)

    def breaks() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        passes.make(tmp_path, breaks)
    clock = Clock()
    assert passes.make(tmp_path, lambda: None, None, clock.sleep, clock) == 1
