"""A cluster in trouble on machines: etcd gone, WAL that is kept or gone, a full disk.

Each time the status names it, and the runbook of docs/database-cluster.md mends it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from tests.bench import results
from tests.lab import milestones, witness
from tests.lab.driver import wait_for
from tests.lab.stage import Stage
from tests.lab.test_failover.cluster import (
    another_leads,
    follows,
    leader,
    standby_of,
    status,
    whole,
)
from tests.lab.test_parts.database import PSQL, refuses_writes, sql

pytestmark = [pytest.mark.lab, pytest.mark.soak]

WATCHERS = ("dcs-1", "dcs-2", "dcs-3")
WAL = "/var/lib/postgresql/15/main/pg_wal"
#: A disk of its own for the WAL, in memory.
SMALL = "/mnt/wal"
#: Beside the WAL that is there: what is written before the test fills it must not do so.
ROOM_MIB = 300
#: Until a member has stepped down, or another one leads.
MOVED_SECONDS = 60

#: New segments of WAL are new files. Else PostgreSQL writes into old ones again, which needs no
#: room: on a full disk WAL goes on for as long as the archive keeps up.
NEW_FILES = ("ALTER SYSTEM SET wal_recycle = off;", "ALTER SYSTEM RESET wal_recycle;")
#: Segments in a row, while others look who leads.
SEGMENTS = 8

#: A segment of WAL ends.
SWITCH = "SELECT pg_switch_wal(); CREATE TABLE filler (); DROP TABLE filler;"

HEAD = ["", "acknowledged", "lost", "refused", "worst wait s"]
#: What is shown after each.
FIGURES: list[list[str]] = []


def problems(stage: Stage) -> str:
    return "\n".join(status(stage)["problems"])


def is_said(stage: Stage, words: str, seconds: float = 60) -> str:
    """Wait until the status says so; all of its problems."""
    wait_for(lambda: words in problems(stage), seconds, f"the status to say {words!r}", interval=1)
    return problems(stage)


@contextlib.contextmanager
def chatting(stage: Stage, name: str, worst_wait: float | None = None) -> Iterator[None]:
    """People chat meanwhile, and nothing acknowledged is lost.

    worst_wait: seconds, where nobody may be refused anything either.
    """
    out = stage.lab.settings.reports / f"{name}.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        time.sleep(2)
        yield
        time.sleep(5)
    report = json.loads(out.read_text())
    wrong = witness.verdict(report, worst_wait)
    if worst_wait is None:
        wrong = [line for line in wrong if "failed" not in line]
    assert wrong == [], wrong
    keys = ("acknowledged", "lost", "failed_requests", "worst_wait_seconds")
    FIGURES.append([name, *(str(report[key]) for key in keys)])
    results.show("trouble", "A cluster in trouble, and people who chat", HEAD, FIGURES)


def test_a_whole_cluster_has_no_trouble(stage: Stage) -> None:
    whole(stage)
    wait_for(lambda: problems(stage) == "", 30, "a status without a problem", interval=1)


def test_etcd_gone_is_no_trouble_for_people_until_a_database_goes_too(stage: Stage) -> None:
    first = leader(stage)
    standby = standby_of(stage)
    try:
        with chatting(stage, "no-etcd", 6.0):
            for name in WATCHERS:
                stage.lab.machine(name).kill()
            # A key lives 12 s.
            time.sleep(25)
            said = is_said(stage, "0 of 3 say that they serve: nothing fails over")
            assert leader(stage) == first
        stage.lab.machine(standby).kill()
        wait_for(lambda: refuses_writes(stage, first), MOVED_SECONDS, "the primary to step down")
        said = is_said(stage, "has no primary: nobody takes writes")
        assert f"{standby}: " in said
    finally:
        stage.lab.boot([*WATCHERS, standby], answering=False)
    whole(stage)
    test_a_whole_cluster_has_no_trouble(stage)


def test_a_slot_that_nobody_reads_is_named_and_does_not_fill_the_disk(stage: Stage) -> None:
    """Patroni drops it with its next look at slots, such as a promotion; it was made by hand."""
    first = leader(stage)
    # What is kept for anybody is kept for a slot as well.
    bounds = ("max_slot_wal_keep_size", "wal_keep_size")
    drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
    for name in bounds:
        sql(stage, first, f"ALTER SYSTEM SET {name} = '64MB';")
    try:
        sql(stage, first, "SELECT pg_reload_conf();")
        sql(stage, first, "SELECT pg_create_physical_replication_slot('nobody', true);")
        for _ in range(8):
            sql(stage, first, SWITCH)
        sql(stage, first, "CHECKPOINT;")
        said = is_said(stage, "slot nobody: has lost WAL that it needed")
        assert "pg_drop_replication_slot('nobody')" in said
    finally:
        sql(stage, first, f"{drop} WHERE slot_name = 'nobody';")
        for name in bounds:
            sql(stage, first, f"ALTER SYSTEM RESET {name};")
        sql(stage, first, "SELECT pg_reload_conf();")
    test_a_whole_cluster_has_no_trouble(stage)


def test_a_standby_that_was_away_for_long_gets_its_wal_from_the_backups(stage: Stage) -> None:
    first = leader(stage)
    standby = standby_of(stage)
    kept = "SELECT setting FROM pg_settings WHERE name = 'wal_keep_size';"
    segments = int(sql(stage, first, kept)) // 16 + 8
    there = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{standby}'"
    there = f"{there.replace('-', '_')};"
    stage.lab.machine(standby).stop()
    try:
        is_said(stage, f"{standby}: has no key in etcd")
        wait_for(lambda: sql(stage, first, there) == "0", 60, "its slot to be dropped")
        begun = sql(stage, first, "SELECT pg_walfile_name(pg_current_wal_lsn());")
        for _ in range(segments):
            sql(stage, first, SWITCH)
        sql(stage, first, "CHECKPOINT;")
        gone = f"SELECT count(*) FROM pg_ls_waldir() WHERE name = '{begun}';"
        wait_for(lambda: sql(stage, first, gone) == "0", 180, "the WAL to be gone", interval=2)
    finally:
        stage.lab.boot([standby], answering=False)
    wait_for(lambda: follows(stage, standby), 300, f"{standby} to follow again", interval=2)
    whole(stage)
    test_a_whole_cluster_has_no_trouble(stage)


def test_a_failover_does_not_wait_for_a_store_that_is_away(stage: Stage) -> None:
    """Who is promoted asks the backups for WAL; nobody answers behind a cut cable."""
    store, before = stage.lab.machine("storage"), leader(stage)
    store.cut()
    try:
        with chatting(stage, "store-away"):
            stage.lab.machine(before).kill()
            begun = time.monotonic()
            another_leads(stage, before, 40)
            stage.say(f"another one leads after {time.monotonic() - begun:.1f} s")
    finally:
        store.mend()
        stage.lab.boot([before], answering=False)
    whole(stage)
    test_a_whole_cluster_has_no_trouble(stage)


@contextlib.contextmanager
def small_disk(stage: Stage, name: str) -> Iterator[None]:
    """A standby has its WAL on a disk of its own meanwhile, as an operator would move it."""
    machine = stage.lab.machine(name)
    machine.run("systemctl stop patroni", timeout=60)
    size = int(machine.run(["du", "-sm", WAL]).stdout.split()[0]) + ROOM_MIB
    machine.run(
        f"mkdir -p {SMALL} && "
        f"mount -t tmpfs -o size={size}m,mode=0700,uid=postgres,gid=postgres wal {SMALL} && "
        f"cp -a {WAL}/. {SMALL}/ && rm -rf {WAL} && ln -s {SMALL} {WAL} && "
        f"chown -h postgres: {WAL} && systemctl start patroni",
        timeout=180,
    )
    wait_for(lambda: follows(stage, name), 120, f"{name} to follow", interval=1)
    for query in (NEW_FILES[0], "SELECT pg_reload_conf();"):
        sql(stage, name, query)
    try:
        yield
        for query in (NEW_FILES[1], "SELECT pg_reload_conf();"):
            sql(stage, name, query)
    finally:
        machine.run(
            f"systemctl stop patroni && rm {WAL} && mkdir -m 0700 {WAL} && cp -a {SMALL}/. {WAL}/ "
            f"&& chown postgres: {WAL} && umount {SMALL} && systemctl start patroni",
            timeout=180,
        )


def test_a_primary_whose_disk_is_full_is_replaced_and_comes_again(stage: Stage) -> None:
    name = standby_of(stage)
    machine = stage.lab.machine(name)
    with small_disk(stage, name):
        whole(stage)
        leads(stage, name)
        with chatting(stage, "disk-full"):
            machine.run(f"dd if=/dev/zero of={SMALL}/full bs=1M 2>/dev/null; sync", check=False)
            said = is_said(stage, "MiB are free for the database")
            assert f"{name}: 0 of " in said
            begun = time.monotonic()
            wait_for(lambda: moved(stage, name), 300, "the WAL to reach the disk's end, and another"
                     " one to lead")
            stage.say(f"another one leads {time.monotonic() - begun:.1f} s later")
        machine.run(["rm", f"{SMALL}/full"])
        # By itself: Patroni tries again in each of its rounds.
        wait_for(lambda: follows(stage, name), 180, f"{name} to follow again", interval=1)
        whole(stage)
    wait_for(lambda: follows(stage, name), 120, f"{name} to follow", interval=1)
    test_a_whole_cluster_has_no_trouble(stage)


def leads(stage: Stage, name: str) -> None:
    """A standby becomes the primary: the other one is away until it is the synchronous one."""
    (other,) = (other for other in status(stage)["members"] if other not in (name, leader(stage)))
    stage.lab.machine(other).run("systemctl stop patroni", timeout=60)
    try:
        wait_for(lambda: status(stage)["sync"] == [name], 60, f"{name} to be synchronous")
        stage.lab.salt_run("database.switchover", name, timeout=120)
    finally:
        stage.lab.machine(other).run("systemctl start patroni")
    whole(stage)


def moved(stage: Stage, name: str) -> bool:
    """Whether another one leads; until then the primary's WAL grows."""
    machine = stage.lab.machine(name)
    for _ in range(SEGMENTS):
        words = [*PSQL, "-d", "synapse"]
        machine.run(words, input=SWITCH, user="postgres", check=False)
    return leader(stage) not in ("", name)
