"""What dies, is silent or is restarted just when others are told of a stream writer."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import pytest
from saltworks import joins, lock, registry, telling

from tests.bench import results
from tests.lab import milestones, workers
from tests.lab.driver import wait_for
from tests.lab.driver.settings import ADDRESSES
from tests.lab.stage import Stage, assert_unharmed, changes

pytestmark = [pytest.mark.lab, pytest.mark.soak]

GENERIC, WRITER = "sync-1", "writer-1"
#: A machine that has died is waited for, then looked for, and then the others are told anew.
SHUT_SECONDS = 58.0
SETTLED_SECONDS = 300

#: What is shown at the end.
FIGURES: list[list[str]] = []


@pytest.fixture(scope="module", autouse=True)
def members(stage: Stage) -> None:
    """One that only serves is there, and a stream writer may come."""
    workers.in_service(stage.lab, GENERIC)
    if not workers.state(stage.lab, WRITER):
        workers.in_service(stage.lab, WRITER)


@contextlib.contextmanager
def witnessed(stage: Stage, what: str, worst_wait: float | None) -> Iterator[None]:
    """People chat meanwhile, and nothing is lost.

    worst_wait: what people may wait, in seconds; nothing is refused then. None: their writer is
    dead, so it is, until another writes.
    """
    out = stage.lab.settings.reports / "fault.json"
    begun = time.monotonic()
    with milestones.chatting(stage.lab, stage.seed, out):
        yield
        took = time.monotonic() - begun
    report = json.loads(out.read_text())
    lost = report["lost"] + report["to_device"]["lost"]
    worst, failed = report["worst_wait_seconds"], report["failed_requests"]
    FIGURES.append([what, f"{took:.0f}", f"{worst:.1f}", str(failed), str(lost)])
    assert lost + report["duplicated"] == 0
    if worst_wait is not None:
        assert_unharmed(out, worst_wait)


def settled(stage: Stage, name: str, *states: registry.State) -> float:
    """Waits until a member has one of states and nobody is told of it; how many seconds."""

    def rests() -> bool:
        busy = any(workers.recorded(stage.lab, row) for row in (lock.RECORD, telling.TOLD))
        return workers.state(stage.lab, name) in states and not busy

    begun = time.monotonic()
    what = f"{name} to be {' or '.join(states)}"
    wait_for(rests, SETTLED_SECONDS, what, interval=workers.LOOK_SECONDS)
    return time.monotonic() - begun


def gone(stage: Stage) -> None:
    """The writer is away, whatever came before."""
    if workers.state(stage.lab, WRITER) != "gone":
        workers.drain(stage.lab, WRITER)


def comes(stage: Stage) -> None:
    """The writer comes, and the door is shut for it: others are being told."""
    workers.comes_again(stage.lab, WRITER)
    wait_for(lambda: stage.is_shut("proxy"), 120, "the door to be shut", interval=0.1)
    wait_for(lambda: stops(stage), 30, "it to be written down who is stopped", interval=0.1)


def stops(stage: Stage) -> object:
    """What is stopped for the writer, while others are being told of it."""
    return workers.recorded(stage.lab, telling.TOLD).get(WRITER, {}).get("stop")


def test_no_state_run_opens_the_door_while_others_are_told(stage: Stage) -> None:
    gone(stage)
    with witnessed(stage, "state.apply behind the shut door", SHUT_SECONDS):
        comes(stage)
        # It may bring the new routing, if the registry has it by then.
        stage.lab.salt("proxy", "state.apply", timeout=300)
        # It is opened, and then that is written down.
        if not stage.is_shut("proxy"):
            wait_for(lambda: not stops(stage), 2, "all to have been told, now that it is open")
        settled(stage, WRITER, "ready")
    assert changes(stage.lab.salt("*", "state.apply", timeout=300)) == []


def is_killed(stage: Stage) -> None:
    # The brackets keep the command from naming itself.
    stage.master.run("pkill -KILL -f '[r]econcile.run'")


def has_its_master_restarted(stage: Stage) -> None:
    stage.master.run("systemctl restart salt-master")


@pytest.mark.parametrize("fault", [is_killed, has_its_master_restarted])
def test_what_was_cut_behind_the_shut_door_is_finished_by_the_next_pass(
    stage: Stage, fault: Callable[[Stage], None]
) -> None:
    gone(stage)
    what = fault.__name__.replace("_", " ")
    with witnessed(stage, f"the run {what} behind the shut door", SHUT_SECONDS):
        comes(stage)
        fault(stage)
        settled(stage, WRITER, "ready")
    assert stage.door("proxy") == ("open", "synapse")


def test_a_writer_that_dies_while_others_are_told_of_it_keeps_nobody_waiting_long(
    stage: Stage,
) -> None:
    gone(stage)
    with witnessed(stage, "a writer that comes dies behind the shut door", None):
        comes(stage)
        stage.lab.machine(WRITER).kill()
        opened = "the door to be open again"
        wait_for(lambda: not stage.is_shut("proxy"), SHUT_SECONDS, opened, interval=0.1)
        # Its join goes on when it is back; or it was ready already, and is lost.
        settled(stage, WRITER, "joining", "gone")
    stage.lab.boot([WRITER], answering=False)
    settled(stage, WRITER, "ready")


def test_a_silent_machine_shuts_no_door_and_is_told_when_it_answers(stage: Stage) -> None:
    gone(stage)
    generic = stage.lab.machine(GENERIC)
    generic.run("systemctl stop salt-minion", timeout=120)
    what = "a writer comes; first another machine is silent, then it answers"
    with witnessed(stage, what, workers.WRITER_WAIT):
        workers.comes_again(stage.lab, WRITER)

        def said() -> str:
            row = workers.recorded(stage.lab, joins.RECORD).get(WRITER, {})
            return str(row.get("error", ""))

        error = wait_for(said, 120, "the writer to be refused")
        assert f"{GENERIC}: must be told that {WRITER} is ready, and does not answer" in str(error)
        assert not stage.is_shut("proxy")
        generic.run("systemctl start salt-minion")
        settled(stage, WRITER, "ready")

    generic.run("systemctl stop salt-minion", timeout=120)
    with witnessed(stage, "a writer's machine dies, until main writes", None):
        stage.lab.machine(WRITER).kill()
        settled(stage, WRITER, "gone")
    assert list(workers.recorded(stage.lab, telling.LATE)) == [GENERIC]
    generic.run("systemctl start salt-minion")
    wait_for(lambda: not workers.recorded(stage.lab, telling.LATE), 120, "it has been told")
    wait_for(lambda: not workers.recorded(stage.lab, lock.RECORD), 120, "the pass to end")
    assert changes(stage.lab.salt(GENERIC, "state.apply", timeout=300)) == []


def test_a_dead_machine_leaves_with_its_key(stage: Stage) -> None:
    stage.lab.machine(GENERIC).kill()
    stage.lab.salt_run("worker.drain", GENERIC, "remove_key=True", timeout=60)
    settled(stage, GENERIC, "gone")
    accepted = stage.master.run(["salt-key", "--list=accepted"]).stdout.split()
    assert GENERIC not in accepted
    assert set(ADDRESSES) <= set(accepted)


def test_what_people_saw_is_shown() -> None:
    head = ["", "seconds", "worst wait s", "failed", "lost"]
    results.show("faults", "What dies while others are told of a stream writer", head, FIGURES)
    assert FIGURES
