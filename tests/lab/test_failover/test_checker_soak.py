"""The checker on machines: 20,000 checks while standbys are in trouble, then while primaries go."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.bench import results
from tests.checker.ledger import KINDS, Ledger
from tests.lab import people
from tests.lab.client import Client
from tests.lab.driver import PROJECT
from tests.lab.reach import reached
from tests.lab.stage import Stage
from tests.lab.test_failover.cluster import (
    another_leads,
    first_of,
    leader,
    standby_of,
    standing_still,
    whole,
)
from tests.lab.test_parts.database import sql

pytestmark = [pytest.mark.lab, pytest.mark.soak]

READERS = ("sync-1", "sync-2")
CHECKS, PROMOTED_CHECKS = 20_000, 6_000
#: Bound of one run of the checker.
SECONDS = 2400
#: Those that are followed by /sync, and the one who writes.
PEOPLE = 7
PASSWORD = "a long one 1"
#: Between two faults, at most.
GAP_SECONDS = 5

Fault = Callable[[Stage], None]


def paused(stage: Stage) -> None:
    """Replay stands still, half a second and what a look at the machine takes."""
    name = standby_of(stage)
    sql(stage, name, "SELECT pg_wal_replay_pause(), pg_sleep(0.5); SELECT pg_wal_replay_resume();")


def delayed(stage: Stage) -> None:
    """Replay is late for a second, by 5 to 200 ms."""
    name, setting = standby_of(stage), "recovery_min_apply_delay"
    late = f"ALTER SYSTEM SET {setting} = '{random.randrange(5, 200)}ms';"
    try:
        sql(stage, name, f"{late} SELECT pg_reload_conf();")
        time.sleep(1)
    finally:
        sql(stage, name, f"ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf();")


def killed(stage: Stage) -> None:
    """Its machine's power is cut; it boots again, and streams."""
    name = standby_of(stage)
    stage.lab.machine(name).kill()
    stage.lab.boot([name], answering=False)
    whole(stage)


def frozen(stage: Stage) -> None:
    """Its machine stands still, 0.5 to 3 s, and nobody is told."""
    with standing_still(stage, standby_of(stage)):
        time.sleep(random.uniform(0.5, 3))


def cut(stage: Stage) -> None:
    """Its cable is out, 1 to 8 s: longer than the primary's patience with a synchronous one."""
    machine = stage.lab.machine(standby_of(stage))
    machine.cut()
    try:
        time.sleep(random.uniform(1, 8))
    finally:
        machine.mend()
    whole(stage)


def switched(stage: Stage) -> None:
    """Another one leads, as the operator says."""
    whole(stage)
    stage.lab.salt_run("database.switchover", timeout=120)
    whole(stage)


def primary_killed(stage: Stage) -> None:
    """The primary's power is cut, another one leads, and it comes again as a standby."""
    whole(stage)
    before = leader(stage)
    stage.lab.machine(before).kill()
    another_leads(stage, before)
    stage.lab.boot([before], answering=False)
    whole(stage)


def primary_frozen(stage: Stage) -> None:
    """The primary stands still until another one leads, and goes on as if it still did."""
    whole(stage)
    before = leader(stage)
    with standing_still(stage, before):
        another_leads(stage, before)
        time.sleep(random.uniform(0, 3))
    whole(stage)


STANDBY_FAULTS: tuple[Fault, ...] = (paused, delayed, killed, frozen, cut)
PROMOTIONS: tuple[Fault, ...] = (switched, primary_killed, primary_frozen)


@pytest.fixture(scope="module")
def places(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checker asks, and as whom."""
    home = stage.lab.machine("synapse")
    main = f"http://{home.address}:8008"
    readers = [f"http://{stage.lab.machine(name).address}:8101" for name in READERS]
    run = f"{random.randrange(1 << 40):x}"
    secret = people.REGISTRATION_SHARED_SECRET
    with reached(main, home.init()) as url, Client(url) as client:
        made = [
            client.register_shared_secret(secret, f"checker-{run}-{number}", PASSWORD)
            for number in range(PEOPLE)
        ]
    accounts = [[row["user_id"], PASSWORD] for row in made]
    file = tmp_path_factory.mktemp("checker") / "places.json"
    file.write_text(json.dumps(
        {"main": main, "writers": readers, "readers": readers, "accounts": accounts}))
    return file


@contextlib.contextmanager
def checking(
    stage: Stage, places: Path, checks: int, out: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The checker runs as the proxy would ask: no other machine is let in to the workers."""
    words = ["nsenter", f"--target={stage.lab.machine('proxy').init()}", "--net", "--"]
    words += [sys.executable, "-m", "tests.checker", str(places), "--out", str(out)]
    with subprocess.Popen([*words, f"--checks={checks}"], cwd=PROJECT) as process:
        try:
            yield process
        finally:
            process.terminate()


def checked(stage: Stage, places: Path, checks: int, faults: Sequence[Fault]) -> tuple[Ledger, int]:
    """One run of the checker while faults come by chance, and how many came."""
    out = places.with_name("ledger.json")
    out.unlink(missing_ok=True)
    chance, end, came = random.Random(1), time.monotonic() + SECONDS, 0
    with checking(stage, places, checks, out) as process:
        while process.poll() is None:
            assert time.monotonic() < end, f"the checker did not end within {SECONDS} s"
            # Each kind comes before one comes again.
            for fault in chance.sample(faults, len(faults)):
                if process.poll() is None:
                    stage.say(f"{fault.__name__}")
                    fault(stage)
                    came += 1
                    time.sleep(chance.uniform(0, GAP_SECONDS))
    whole(stage)
    assert process.returncode == 0
    return Ledger.of(json.loads(out.read_text())), came


def served(stage: Stage) -> float:
    """Interactions that standbys have served so far for both readers."""
    pattern = r'^synapse_standby_reads_interactions_total{outcome="standby"}'
    total = 0.0
    for name in READERS:
        url = f"http://{stage.lab.machine(name).address}:8101/_synapse/metrics"
        said = stage.lab.machine(name).run(f"curl -sf {url} | grep '{pattern}'").stdout
        total += float(said.split()[1])
    return total


def row(name: str, ledger: Ledger, came: int) -> list[str]:
    found = [f"{ledger.bad[kind]}/{ledger.checks[kind]}" for kind in KINDS]
    return [name, str(came), *found, str(len(ledger.errors))]


def test_nothing_stale_and_nothing_lost_on_machines(stage: Stage, places: Path) -> None:
    whole(stage)
    pids = {name: first_of(stage, name) for name in READERS}
    begun, before = time.monotonic(), served(stage)
    faulty, came = checked(stage, places, CHECKS, STANDBY_FAULTS)
    promoted, moved = checked(stage, places, PROMOTED_CHECKS, PROMOTIONS)
    many, seconds = served(stage) - before, time.monotonic() - begun
    head = ["", "faults", *(f"{kind}: bad/checks" for kind in KINDS), "errors of clients"]
    rows = [row("standbys in trouble", faulty, came), row("promotions", promoted, moved)]
    title = f"The checker on machines; standbys served {many:.0f} interactions in {seconds:.0f} s"
    results.show("standby-checks-machines", title, head, rows)
    assert faulty.bad.total() == promoted.bad.total() == 0, (str(faulty), str(promoted))
    assert faulty.errors == [], faulty
    assert {name: first_of(stage, name) for name in READERS} == pids


