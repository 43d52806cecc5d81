"""A running PostgreSQL taken over by Patroni, a standby beside it, and all that may go wrong."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres
from tests.process.front_door import wait_for
from tests.process.patroni_house import (
    Authority,
    Etcd,
    Machine,
    Programs,
    Writer,
    folder,
    leader_of,
    member,
)
from tests.render import trees
from tests.render.conftest import renderer

__all__ = ["renderer"]

pytestmark = pytest.mark.alone

#: From a fault to the first write that is acknowledged.
KILL_SECONDS, SWITCH_SECONDS = 20, 5


RULES = postgres.load(postgres.MODULES / "saltworks_patroni_rules.py")


@dataclass
class Cluster:
    """Two machines and an etcd of three.

    :param postmaster: process of the first one's server before Patroni had it.
    """

    etcd: Etcd
    one: Machine
    two: Machine
    postmaster: int
    make: Any
    client: Writer = field(default_factory=Writer)

    @property
    def machines(self) -> list[Machine]:
        return [self.one, self.two]

    def roles(self) -> tuple[Machine, Machine]:
        """The leader and the standby, once both do what they should."""
        wait_for("a leader", lambda: leader_of(self.machines) is not None, 30)
        leader = leader_of(self.machines)
        assert leader is not None
        (standby,) = [row for row in self.machines if row is not leader]
        standby.streaming()
        return leader, standby

    def set(self, durability: str) -> dict[str, Any]:
        """The pillar's durability is set on a running cluster, as the state does it."""
        changes: dict[str, Any] = self.one.salt["patroni_machine.attune"](
            self.one.at, durability, 1 << 20, [], True, self.one.config
        )
        return changes

    def synchronous(self) -> tuple[Machine, Machine]:
        """The same as :meth:`roles`, where an acknowledged write is on both."""
        self.set("sync")
        leader, standby = self.roles()
        wait_for(
            "a synchronous standby", lambda: leader.status()["sync"] == [standby.name], 30
        )
        return leader, standby


@pytest.fixture(scope="module")
def cluster(renderer: trees.Renderer) -> Iterator[Cluster]:
    with folder() as top:
        programs, authority = Programs(top), Authority()
        made: list[Machine] = []

        def make(number: int, **more: Any) -> Machine:
            made.append(Machine(renderer, programs, authority, etcd.hosts, number, **more))
            return made[-1]

        try:
            etcd = Etcd(renderer, programs, authority, 3)
            one, two = make(2, adopts=True), make(3)
            one.initdb()
            two.initdb()
            one.sql("CREATE TABLE said (what text PRIMARY KEY); CREATE ROLE synapse_user;")
            with pytest.raises(CommandExecutionError, match="machine with adopts: true first"):
                two.take()
            before = one.postmaster
            one.take()
            two.take()
            yield Cluster(etcd, one, two, before, make)
        finally:
            for machine in made:
                machine.end()
            programs.end()


def test_a_running_server_is_taken_over_as_it_runs(cluster: Cluster) -> None:
    one = cluster.one
    assert one.postmaster == cluster.postmaster
    shown = one.status()
    assert shown["leader"] == one.name
    assert not shown["members"][one.name]["pending_restart"]
    assert shown["here"]["pending"] == []
    wait_for("Patroni's settings", lambda: one.setting("hot_standby_feedback") == "on")
    assert one.setting("max_standby_streaming_delay") == "500ms"
    assert one.setting("max_slot_wal_keep_size") == "10GB"


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    for machine in cluster.machines:
        adopts = machine.pillar["patroni"]["adopts"]
        assert machine.salt["patroni_machine.settle"](machine.at, adopts, machine.config) == {
            "what": "attach", "why": "it is of this cluster", "changed": [],
        }  # fmt: skip
        assert machine.give_roles() == []
    assert cluster.set("async") == {}


def test_the_standby_is_a_copy_in_place_of_an_empty_cluster(cluster: Cluster) -> None:
    one, two = cluster.one, cluster.two
    assert two.status()["members"][two.name]["state"] == "running"
    shown = one.status()["here"]
    assert [row["name"] for row in shown["senders"]] == [two.name]
    assert [(row["name"], row["active"]) for row in shown["slots"]] == [("127_0_0_3", True)]
    with_tls = "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_replication USING (pid);"
    assert one.sql(with_tls) == "t|TLSv1.3"
    conninfo = two.sql("SHOW primary_conninfo;")
    assert "sslmode=verify-full" in conninfo
    assert "password" not in conninfo
    assert two.setting("max_connections") == one.setting("max_connections")


def test_a_data_folder_that_is_not_empty_is_never_removed(cluster: Cluster) -> None:
    other = cluster.make(4)
    other.initdb()
    other.sql("CREATE DATABASE synapse;")
    before = other.postmaster
    with pytest.raises(CommandExecutionError, match="is a database that initdb did not make"):
        other.take()
    assert other.postmaster == before
    assert other.sql("SELECT 1;", "synapse") == "1"
    other.sql("DROP DATABASE synapse; CREATE TABLE mine (n int);")
    with pytest.raises(CommandExecutionError, match="files of objects that initdb did not make"):
        other.take()
    assert other.sql("SELECT count(*) FROM mine;") == "0"


def test_roles_see_what_is_asked_for_and_no_more(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    rewinds, reads = "saltworks_rewind", "synapse_user"

    def roles(machine: Machine, test: bool = False) -> Any:
        return machine.salt["patroni_machine.roles"](machine.at, {}, rewinds, reads, test)

    assert roles(leader, True) == ["synapse_user sees statistics"]
    assert roles(leader) == ["synapse_user sees statistics"]
    assert roles(leader) == []
    assert roles(standby) == []
    assert leader.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'saltworks_rewind';") == "f"


def test_the_api_changes_nothing_without_a_certificate(cluster: Cluster) -> None:
    own = cluster.one.salt["patroni.read_config"](cluster.one.config)["restapi"]
    context = ssl.create_default_context(cafile=own["cafile"])
    url = f"https://{own['connect_address']}"
    with urllib.request.urlopen(f"{url}/cluster", context=context, timeout=5) as answer:
        assert json.load(answer)["members"]
    request = urllib.request.Request(f"{url}/config", b'{"ttl": 99}', method="PATCH")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, context=context, timeout=5)


def test_a_switchover_is_short_and_loses_nothing(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    cluster.client.until([leader], 5)
    begun = time.monotonic()
    done = leader.call("switchover")
    assert (done["leader"], done["before"]) == (standby.name, leader.name)
    where, _ = cluster.client.until(cluster.machines, 10)
    took = time.monotonic() - begun
    print(f"switchover: first write after {took:.1f} s")
    assert where is standby
    assert took < SWITCH_SECONDS
    assert cluster.client.lost(standby) == []
    assert cluster.roles() == (standby, leader)
    with pytest.raises(CommandExecutionError, match="is the leader already"):
        leader.call("switchover", standby.name)
    with pytest.raises(CommandExecutionError, match="is no member"):
        leader.call("switchover", "somebody")


def test_durability_is_changed_while_it_runs(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    changes = cluster.set("sync-strict")
    assert changes["synchronous_mode"] == {"old": False, "new": True}
    wait_for("a synchronous standby", lambda: leader.status()["sync"] == [standby.name], 20)
    assert leader.status()["durability"] == "sync-strict"
    # Strict: without a standby nothing is acknowledged.
    standby.kill()
    wait_for("no standby", lambda: leader.status()["sync"] == [], 30)
    with pytest.raises(AssertionError, match="nobody took a write"):
        cluster.client.until([leader], 3)
    # Patroni 3.0.2 does not go from here to sync: it would keep waiting for the standby.
    cluster.set("async")
    cluster.client.until([leader], 10)
    cluster.set("sync")
    cluster.client.until([leader], 10)
    standby.start()
    assert cluster.synchronous() == (leader, standby)


@pytest.mark.soak
def test_a_killed_leader_is_replaced_and_comes_back_as_a_standby(cluster: Cluster) -> None:
    leader, standby = cluster.synchronous()
    cluster.client.until([leader], 5)
    leader.kill()
    where, seconds = cluster.client.until([standby], KILL_SECONDS)
    print(f"kill: first write after {seconds:.1f} s")
    assert where is standby
    assert cluster.client.lost(standby) == []
    leader.start()
    assert cluster.roles() == (standby, leader)
    assert cluster.client.lost(leader) == []
    lines = {row["timeline"] for row in standby.status()["members"].values()}
    assert len(lines) == 1


def test_a_leader_that_can_make_no_wal_file_is_replaced_and_comes_again(cluster: Cluster) -> None:
    """Its disk is full: it ends, may start as a standby, and would end again as the leader."""
    leader, standby = cluster.synchronous()
    leader.sql("ALTER SYSTEM SET wal_recycle = off;")
    leader.sql("SELECT pg_reload_conf();")
    folder = Path(leader.at["data"]) / "pg_wal"
    folder.chmod(0o500)
    try:
        # The segments that are there come first.
        for _ in range(20):
            with contextlib.suppress(subprocess.CalledProcessError):
                leader.sql("SELECT pg_switch_wal(); CREATE TABLE filler (); DROP TABLE filler;")
        where, seconds = cluster.client.until([standby], KILL_SECONDS)
        print(f"no WAL file: first write after {seconds:.1f} s")
        assert where is standby
        assert cluster.client.lost(standby) == []
    finally:
        folder.chmod(0o700)
        cluster.roles()
        leader.sql("ALTER SYSTEM RESET wal_recycle;")
        leader.sql("SELECT pg_reload_conf();")
    assert cluster.roles() == (standby, leader)
    assert cluster.client.lost(leader) == []


@pytest.mark.soak
def test_what_a_lost_leader_wrote_alone_is_rewound(cluster: Cluster) -> None:
    cluster.set("async")
    leader, standby = cluster.roles()
    wait_for("asynchronous", lambda: leader.setting("synchronous_standby_names") == "")
    standby.kill()
    leader.sql("INSERT INTO said VALUES ('nobody else has this');")
    leader.kill()
    # It is behind by less than what async allows.
    standby.start()
    where, _ = cluster.client.until([standby], KILL_SECONDS + 5)
    leader.start()
    assert cluster.roles() == (where, leader)
    assert leader.sql("SELECT what FROM said WHERE what LIKE 'nobody else%';") == ""
    log = (leader.programs.top / f"patroni-{leader.name}.log").read_text("utf-8", "replace")
    assert "running pg_rewind" in log


def test_a_frozen_leader_acknowledges_nothing_once_another_leads(cluster: Cluster) -> None:
    leader, standby = cluster.synchronous()
    leader.freeze()
    try:
        _, seconds = cluster.client.until([standby], KILL_SECONDS)
        print(f"frozen: first write after {seconds:.1f} s")
    finally:
        leader.freeze(False)
    # From here on both run, and the old one has yet to learn.
    until = time.monotonic() + 10
    split = Writer()
    while time.monotonic() < until and leader.takes_writes():
        assert not split.tries(leader), "two servers acknowledged writes at a time"
    assert not leader.takes_writes()
    # Without patroni_guarded.py the old one takes the key back, and the new one's writes are lost.
    assert cluster.roles() == (standby, leader)
    assert cluster.client.lost(standby) + cluster.client.lost(leader) == []


@pytest.mark.soak
def test_etcd_s_leader_dies_and_writes_go_on(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    dead = member().status(cluster.etcd.config("dcs1"))["leader"]
    line = leader.status()["members"][leader.name]["timeline"]
    cluster.etcd.kill(dead)
    worst, end = 0.0, time.monotonic() + 15
    try:
        # Longer than a key lives.
        while time.monotonic() < end:
            worst = max(worst, cluster.client.until([leader], 10)[1])
            time.sleep(0.2)
    finally:
        cluster.etcd.start(dead)
    print(f"etcd's leader killed: longest write {worst:.1f} s")
    assert worst < 2
    assert cluster.roles() == (leader, standby)
    assert leader.status()["members"][leader.name]["timeline"] == line


@pytest.mark.soak
def test_without_etcd_the_leader_goes_on_while_it_reaches_all(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    cluster.etcd.kill()
    try:
        # Longer than a key lives; and both know who leads.
        end = time.monotonic() + 18
        while time.monotonic() < end:
            cluster.client.until([leader], 3)
            time.sleep(0.5)
        assert not standby.takes_writes()
        said = leader.status()
        assert (said["leader"], said["durability"]) == (leader.name, "")
        assert "does not answer /cluster" in said["dcs"]
        standby.kill()
        begun = time.monotonic()
        wait_for("the leader to step down", lambda: not leader.takes_writes(), 30)
        print(f"no etcd, no standby: read-only after {time.monotonic() - begun:.1f} s")
    finally:
        cluster.etcd.start()
        if not standby.process:
            standby.start()
    cluster.roles()
    cluster.client.until(cluster.machines, 10)


def test_a_leader_that_reaches_nobody_steps_down_before_its_key_is_gone(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    # As a cut link does it: nobody refuses, nobody answers.
    cluster.etcd.freeze()
    standby.freeze()
    begun = time.monotonic()
    try:
        wait_for("read-only", lambda: not leader.takes_writes(), RULES.TIMERS["ttl"])
        print(f"cut off: read-only after {time.monotonic() - begun:.1f} s")
    finally:
        cluster.etcd.freeze(False)
        standby.freeze(False)
    cluster.roles()
    cluster.client.until(cluster.machines, 20)


@pytest.mark.soak
def test_a_standby_is_copied_anew_where_it_is_asked_for(cluster: Cluster) -> None:
    leader, standby = cluster.roles()
    with pytest.raises(CommandExecutionError, match="I am the leader"):
        standby.call("reinit", leader.name)
    before = standby.postmaster
    leader.call("reinit", standby.name)
    wait_for("another server", lambda: standby.postmaster not in (0, before), 30)
    assert cluster.roles() == (leader, standby)


@pytest.mark.soak
def test_paused_patroni_leaves_everything_as_it_is(cluster: Cluster) -> None:
    leader, _ = cluster.roles()
    assert leader.call("pause")["pause"] is True
    try:
        assert leader.status()["pause"] is True
        before = leader.postmaster
        leader.stop()
        assert leader.postmaster == before
        leader.start()
        wait_for("Patroni", lambda: leader_of([leader]) is leader, 20)
        assert leader.postmaster == before
    finally:
        leader.call("resume")
    assert leader.status()["pause"] is False


def test_the_way_back_is_one_restart(cluster: Cluster) -> None:
    """Last: it takes the cluster apart."""
    leader, standby = cluster.roles()
    retire = "patroni_machine.retire"
    with pytest.raises(CommandExecutionError, match="retire these first"):
        leader.salt[retire](leader.at, leader.config)
    assert standby.salt[retire](standby.at, standby.config, True)
    assert standby.process
    standby.salt[retire](standby.at, standby.config)
    assert (standby.postmaster, (standby.data / "PG_VERSION").exists()) == (0, True)
    with pytest.raises(CommandExecutionError, match="still has the members"):
        leader.salt["patroni_machine.forget"](leader.config)
    gone = "a standby that is no member"
    wait_for(gone, lambda: list(leader.status()["members"]) == [leader.name], 30)
    leader.salt[retire](leader.at, leader.config)
    assert leader.takes_writes()
    cluster.client.until([leader], 5)
    etc = Path(leader.at["config"])
    assert "include_dir = 'conf.d'" in (etc / "postgresql.conf").read_text()
    assert not list(etc.glob("*.backup")) + list(etc.glob("*.base.conf"))
    assert (etc / "start.conf").read_text().endswith("\nauto\n")
    assert leader.setting("synchronous_standby_names") == ""
    below = leader.salt["etcd_keys.below"]
    assert below(cluster.etcd.at(), "/service/") == {}
    # A run that died in between is continued.
    leader.salt[retire](leader.at, leader.config)
    assert leader.takes_writes()
    assert cluster.client.lost(leader) == []
