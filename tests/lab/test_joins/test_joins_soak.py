"""Machines of workers join and leave in random order while people chat, and a storm of events."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from saltworks import members, minions, passes, registry, tree

from tests.bench import results
from tests.lab import join_figures, milestones, witness, workers
from tests.lab.driver import PROJECT, Lab, LabMachine, wait_for
from tests.lab.driver.settings import ADDRESSES
from tests.lab.stage import Stage, assert_unharmed

pytestmark = [pytest.mark.lab, pytest.mark.soak]

MACHINES = ("sync-1", "sync-2", "sender-1", "writer-1")
JOINS = 20
SEED = int(os.environ.get("SALTWORKS_SEED") or time.time())
#: The witness stops by itself after this, should the run hang.
WITNESS_SECONDS = 3 * 3600.0

FLOORS = 3
#: Whose minion is restarted for Salt's floor: nobody waits for it.
IDLE = "redis"
NOTHING = "floor"
#: As many steps as a join has, each a runner's, as a join's are.
STEPS = (PROJECT / "orch/worker/join.sls").read_text().count("\n  worker.")

#: The storm: so many events from each side, in so many seconds.
EACH, STORM_SECONDS = 100, 2.0
#: Ids that are accepted, that only look like ones, and that are none at all.
REAL = (*MACHINES, *ADDRESSES)
FORGED = ("sync-77", "nobody", "*", "sync-*", "../../etc/passwd", "{{ 1 }}", "a\nb: c", "x" * 500)

DATA = Path(__file__).parents[1] / "driver/data"


def report_file() -> Path:
    """Beside those of the lab that this one is removed from."""
    return Lab.load().settings.reports / "join.json"


def minion_started(machine: LabMachine) -> float:
    """When a machine's minion was started, by the monotonic clock: machines have the host's."""
    property = "--property=ExecMainStartTimestampMonotonic"
    shown = machine.run(["systemctl", "show", property, "--value", "salt-minion"]).stdout
    return int(shown) / 1e6


def synapse_start(machine: LabMachine) -> float:
    """Seconds that a machine's processes took to start: each says itself when it answers."""
    names = [f"--property={name}TimestampMonotonic" for name in ("ExecMainStart", "ActiveEnter")]
    shown = machine.run(["systemctl", "show", *names, "synapse-worker@*"]).stdout
    return join_figures.own_start(shown)


def program(name: str) -> list[str]:
    return ["/opt/salt/bin/python", "-c", (DATA / f"{name}.py").read_text()]


def salt_floor(stage: Stage) -> dict[str, float]:
    """Seconds that Salt itself takes for a join's actions with nothing in them, one by one.

    `minion`, from its start to its answer; `orchestration`; `modules`; `states`, a run on the
    machine and one on the front.
    """
    machine, listening = stage.lab.machine(IDLE), "/run/saltworks-floor"
    steps = "".join(f"step-{n}:\n  salt.runner:\n    - name: test.arg\n" for n in range(STEPS))
    for name, text in ((NOTHING, "floor:\n  test.nop: []\n"), (f"{NOTHING}-steps", steps)):
        stage.master.write(f"/srv/saltworks/salt/{name}.sls", text)
    stage.master.run(["rm", "-f", listening])
    machine.run("systemctl stop salt-minion", timeout=120)
    with ThreadPoolExecutor(1) as pool:
        # It has to listen before the minion starts.
        words = [*program("floor"), IDLE, NOTHING, f"{NOTHING}-steps"]
        words += [json.dumps(minions.MODULES), listening]
        asked = pool.submit(stage.master.run, words, timeout=120)
        stage.master.wait_for(f"test -e {listening}", 30, "somebody to listen")
        machine.run("systemctl start salt-minion")
        seen = json.loads(asked.result().stdout.splitlines()[-1])
    started = minion_started(machine)
    return {
        "minion": seen["answered"] - started,
        "orchestration": seen["orchestration"],
        "modules": seen["modules"],
        "states": 2 * seen["state"],
    }


def floors(stage: Stage) -> dict[str, float]:
    """The median of some."""
    found = [salt_floor(stage) for _ in range(FLOORS)]
    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def join(stage: Stage, name: str, known: set[str]) -> join_figures.Join:
    """A machine joins, by an invite if it is none of the known ones."""
    how = join_figures.AGAIN if name in known else join_figures.INVITED
    (workers.comes_again if name in known else workers.invited)(stage.lab, name)
    known.add(name)
    machine = stage.lab.machine(name)
    begun = time.time() - time.monotonic() + minion_started(machine)
    row = workers.await_joined(stage.lab, name)
    return join_figures.joined(name, how, row, begun, synapse_start(machine))


def test_machines_join_and_leave_in_random_order_and_nobody_notices(stage: Stage) -> None:
    stage.say(f"again in the same order: SALTWORKS_SEED={SEED}")
    out = stage.lab.settings.reports / "joins.json"
    joined: list[join_figures.Join] = []
    left: list[float] = []
    known: set[str] = set()
    with milestones.chatting(stage.lab, stage.seed, out, WITNESS_SECONDS):
        floor = floors(stage)
        for move in join_figures.moves(MACHINES, JOINS, random.Random(SEED)):
            if move.joins:
                joined.append(join(stage, move.machine, known))
                stage.say(f"{move.machine} joined in {joined[-1].total:.1f} s")
            else:
                left.append(workers.drain(stage.lab, move.machine))
                stage.say(f"{move.machine} left in {left[-1]:.1f} s")
    kept = join_figures.report(joined, floor, left) | {"seed": SEED}
    witness.write_report(kept, report_file())
    title = f"{JOINS} joins and as many leaves in random order, under the witness"
    results.show("joins", title, join_figures.HEAD, join_figures.table(joined, kept))

    report = json.loads(out.read_text())
    stage.say(f"{report['acknowledged']} sent, worst wait {report['worst_wait_seconds']} s")
    assert_unharmed(out)
    assert report["long_polls"]["cut"] == 0
    assert report["long_polls"]["total"] > len(left)


def test_a_join_takes_little_more_than_salt_and_synapse_themselves() -> None:
    kept = json.loads(report_file().read_text())
    assert kept["seed"] == SEED, "no machine has joined in this run"
    assert join_figures.problems(kept) == []


def storm(stage: Stage) -> float:
    """Start events from the master and from an accepted worker's minion, most of which lie.

    How many seconds it took.
    """
    ids = [*REAL, *FORGED]
    # Both have to be up before the first.
    at, pause = time.time() + 4, STORM_SECONDS / EACH

    def fire(kind: str, machine: LabMachine, side: int) -> float:
        names = [ids[(2 * number + side) % len(ids)] for number in range(EACH)]
        events = [(f"salt/minion/{name}/start", {"id": name}) for name in names]
        request = {"from": kind, "at": at, "pause": pause, "events": events}
        done = machine.run(program("fire"), timeout=120, input=json.dumps(request))
        return float(json.loads(done.stdout.splitlines()[-1]))

    with ThreadPoolExecutor(2) as pool:
        sides = (("master", stage.master, 0), ("minion", stage.lab.machine("sync-1"), 1))
        return max(run.result() for run in [pool.submit(fire, *side) for side in sides])


def await_rest(stage: Stage) -> None:
    """Waits until no pass is wanted and none is made, and none is for longer than two would be."""
    mark = stage.master.root / tree.RECORDS.lstrip("/") / "reconcile.wanted"
    process = ["pgrep", "-f", "reconcile.run handle="]
    busy = time.monotonic()

    def rests() -> bool:
        nonlocal busy
        if mark.exists() or stage.master.run(process, check=False).ok:
            busy = time.monotonic()
        return time.monotonic() - busy > 2 * passes.SPACING_SECONDS

    wait_for(rests, 120, "all passes to be over", interval=0.5)


def passed(stage: Stage) -> int:
    return int(workers.recorded(stage.lab, members.PASSES).get("count", 0))


def reloads(stage: Stage, since: float) -> int:
    """How often nginx was reloaded since then, by its unit's journal."""
    journal = f"journalctl -u nginx --since=@{since:.0f} -o cat --no-pager"
    return int(stage.lab.machine("proxy").run(f"{journal} | grep -c ^Reloaded || true").stdout)


def test_a_storm_of_start_events_while_a_machine_comes(stage: Stage) -> None:
    for name in ("sync-1", "sync-2"):
        if name not in workers.recorded(stage.lab, registry.RECORD):
            workers.invited(stage.lab, name)
            workers.await_joined(stage.lab, name)
            workers.drain(stage.lab, name)
    out = stage.lab.settings.reports / "storm.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        await_rest(stage)
        before, begun = passed(stage), time.time()
        # One pass brings it in, which takes longer than the storm.
        stage.lab.salt_run("worker.undrain", "sync-2", timeout=60)
        took = storm(stage)
        workers.await_joined(stage.lab, "sync-2")
        await_rest(stage)
        made, lasted = passed(stage) - before, time.time() - begun
        loaded = reloads(stage, begun)
    said = f"{2 * EACH} events in {took:.1f} s: {made} passes, {loaded} reloads in {lasted:.0f} s"
    stage.say(said)
    # The schedule asks for one each half minute as well.
    assert 1 <= made <= 2 + (1 + int(lasted // 30)), said
    assert 1 <= loaded <= 2, said
    assert took < STORM_SECONDS + 1, said
    assert stage.lab.salt_run("lock.show", timeout=60) == {"held": False}
    assert_unharmed(out)
    # Whoever was made up is nobody still.
    assert set(workers.recorded(stage.lab, registry.RECORD)) <= set(MACHINES)
