"""The cluster's lock and the mutex below it: one at a time, never stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from saltworks import lock, mutex, owners
from saltworks.errors import Refused

from tests.lab.driver import wait_for
from tests.unit.house import House, held, living


def test_it_is_shown_refused_and_free_again_when_its_owner_ends() -> None:
    with living() as owner:
        made = House("lock", lock=held(owner, "milestone m2"))
        shown = made.module.show()
        assert (shown["held"], shown["reason"], shown["process"]) == (
            True,
            "milestone m2",
            owner.pid,
        )
        assert shown["since"] < shown["expires"]
        with pytest.raises(Refused, match=rf"milestone m2: is running already .* {owner.pid}"):
            lock.take(made, "reconcile", 60)
        with pytest.raises(Refused, match="moving media refused"):
            lock.refuse_others(made.store, "moving media")
        # Not ours to let go of.
        lock.release(made)
        assert made.module.show()["held"]
    assert made.module.show() == {"held": False}
    lock.take(made, "reconcile", 60)
    assert made.module.show()["process"] == os.getpid()
    lock.release(made)
    assert made.module.show() == {"held": False}


def test_a_lock_that_expired_is_free_although_its_owner_lives() -> None:
    with living() as owner:
        made = House("lock", lock=held(owner, "reconcile", seconds=-1))
        assert made.module.show() == {"held": False}
        lock.take(made, "milestone m2", 60)
        assert lock.problems(made.store) == []


def test_an_owner_that_has_ended_is_dead_although_its_parent_has_not_looked() -> None:
    with living() as owner:
        os.kill(owner.pid, signal.SIGKILL)
        wait_for(lambda: owners.stat_field(owner.pid, 0) == "Z", 10, "it to end")
        assert not owners.lives(owner)


def test_it_is_broken_once_and_its_owner_learns_that_it_lost_it() -> None:
    with living() as owner:
        made = House("lock", lock=held(owner, "reconcile"))
        broken = made.module.break_()
        assert broken == f"the lock of process {owner.pid} (reconcile) is broken"
        assert "nobody holds it" in made.module.break_()["data"]
        lock.take(made, "milestone m2", 60)
    made.store.rows["lock"] = held(owners.this_process(), "reconcile")
    with living() as owner:
        made.store.rows["lock"] = held(owner, "milestone m2")
        with pytest.raises(Refused, match="going on refused"):
            lock.refuse_others(made.store, "going on")


def test_threads_and_processes_exclude_each_other_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "records" / "records.mutex"
    inside: list[int] = []
    most: list[int] = []

    def count() -> None:
        for _ in range(20):
            with mutex.held(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(most), max(most)) == (80, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    words = ["flock", "--no-fork", str(path), "sh", "-c", "echo held; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        late = pytest.raises(Refused, match=r"was held by another process for 0 s -> .*fuser")
        with late, mutex.held(path, seconds=0.1):
            pass
        other.kill()
    with mutex.held(path, seconds=1):
        pass
