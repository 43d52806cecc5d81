"""Redis machines, sentinels and proxies with the formulas' files, and what may happen to them.

Processes that speak and hear as Synapse's do say whether the bus is there. What is measured is from
the fault to the moment at which all of them hear each other again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import redis_house
from tests.process.front_door import wait_for
from tests.process.patroni_house import Json, folder
from tests.process.redis_house import House, Watch, bus
from tests.render import trees
from tests.render.conftest import renderer

__all__ = ["renderer"]

pytestmark = pytest.mark.alone

#: Within that, all of Synapse's processes hear each other again.
BOUND_SECONDS = 15
#: As long as a process waits at the most before it comes again: of formula synapse's plugin
#: saltworks_bus, and without it.
PATIENT, STOCK = 1.0, redis_house.SAYS_SECONDS
#: Longer than all that could happen meanwhile.
FROZEN_SECONDS = 20

SENTINEL = redis_house.AT_SENTINELS


@pytest.fixture(scope="module")
def running(renderer: trees.Renderer) -> Iterator[House]:
    with redis_house.started(renderer) as house:
        yield house


@pytest.fixture
def house(running: House) -> Iterator[House]:
    """All of it, and all of it well."""
    yield running
    running.network.mend()
    for daemon in (*running.redis.values(), *running.sentinel.values(), *running.proxy.values()):
        if daemon.process is None:
            daemon.start()
        daemon.freeze(False)
    running.rest()


def killed(house: House, master: str) -> None:
    house.redis[master].kill()


def frozen(house: House, master: str) -> None:
    house.redis[master].freeze()


def cut_off(house: House, master: str) -> None:
    house.network.cut(*house.between({master}, set(house.numbers) - {master}))


def handed_over(house: House, master: str) -> None:
    house.module().failover(30)


FAULTS = [killed, frozen, cut_off, handed_over]


def test_all_of_it_agrees(house: House) -> None:
    shown = house.status()
    assert shown["wrong"] == []
    assert (shown["agree"], shown["quorum"]) == (3, 2)
    master, follower = house.master(), house.follower()
    assert shown["master"] == master
    assert shown["servers"][follower]["follows"] == master
    assert shown["servers"][follower]["lag"] <= 2
    wanted = {
        "says_master": True, "named_by": sorted(house.sentinel), "followed_by": [follower]
    }  # fmt: skip
    nothing = {"says_master": False, "named_by": [], "followed_by": []}

    def seen() -> list[Json]:
        return [house.proxied(name)["redises"] for name in house.proxy]

    # A proxy takes everybody for well until it has asked.
    wait_for("the proxies' first answers",
             lambda: seen() == [{master: wanted, follower: nothing}] * len(house.proxy))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_bus_comes_back_by_itself(
    house: House, fault: Callable[[House, str], None]
) -> None:
    master = house.master()
    with bus(house, PATIENT) as processes, Watch(house) as watch:
        processes.mark()
        fault(house, master)
        seconds = processes.wait(2 * BOUND_SECONDS)
        print(f"{fault.__name__}: {seconds:.1f} s")
        assert seconds < BOUND_SECONDS
    assert house.serving() == {house.master() if fault in (killed, handed_over) else
                               next(name for name in house.redis if name != master)}
    assert watch.split == 0, watch.rows


def test_a_thawed_old_master_has_no_clients_and_gets_none(house: House) -> None:
    master = house.master()
    with bus(house, PATIENT) as processes, Watch(house) as watch:
        processes.mark()
        begun = time.monotonic()
        house.redis[master].freeze()
        processes.wait(FROZEN_SECONDS)
        time.sleep(max(0, begun + FROZEN_SECONDS - time.monotonic()))
        house.redis[master].freeze(False)
        processes.mark()
        thawed = time.monotonic()
        wait_for("it to be a replica", lambda: house.role(master) == "slave", 20)
        assert all(master not in seen for when, seen in watch.rows if when > thawed)
        # Sentinels' own channel, which come again, and that of the bus at the new one alone.
        wait_for("sentinels' channel", lambda: channels(house, master) == 1)
        time.sleep(3)
        assert channels(house, master) == 1
        assert channels(house, house.master()) == 2
        assert processes.silence() < 2
    assert watch.split == 0, watch.rows


def channels(house: House, name: str) -> int:
    said = house.cli(name, "INFO", "stats", account=redis_house.AT_REDIS)
    return int(next(row for row in said.splitlines() if row.startswith("pubsub_channels:"))[16:])


def test_a_machine_that_is_cut_off_with_the_old_master_goes_nowhere(house: House) -> None:
    """Two halves of Synapse on two Redis would not hear each other, and nobody would notice."""
    master = house.master()
    inside = {master, "worker-1"}
    with Watch(house) as watch:
        house.network.cut(*house.between(inside, set(house.numbers) - inside))
        wait_for("the others' new one", lambda: house.verdict("synapse") not in ("", master), 15)
        assert house.verdict("worker-1") == ""
        assert house.role(master) == "master", "or it is no test of this"
        time.sleep(3)
        assert house.verdict("worker-1") == ""
        house.network.mend()
        wait_for("both", lambda: len(house.serving()) == 1, 15)
    assert watch.split == 0, watch.rows


def test_without_sentinels_the_master_goes_on(house: House) -> None:
    with bus(house, PATIENT) as processes:
        processes.mark()
        for name in ("redis-1", "redis-2"):
            house.sentinel[name].kill()
        time.sleep(8)
        assert processes.silence() < 2
        shown = house.status()
        assert shown["master"] == house.master()
        said = [row["what"] for row in shown["wrong"]]
        assert any("redis-1 does not answer" in row and "no failover" in row for row in said), said
        with pytest.raises(CommandExecutionError, match="only 1 sentinels answer"):
            house.module().failover(5)


def test_a_replica_that_is_away_is_said_and_changes_nothing(house: House) -> None:
    follower = house.follower()
    with bus(house, PATIENT) as processes:
        processes.mark()
        house.redis[follower].kill()
        time.sleep(6)
        assert processes.silence() < 2
        said = [row["what"] for row in house.status()["wrong"]]
        assert any(row.startswith(f"Redis of {follower} does not answer") for row in said), said
        with pytest.raises(CommandExecutionError, match="no replica"):
            house.module().failover(5)


def test_a_proxy_that_restarts_costs_its_own_machine_alone(house: House) -> None:
    with bus(house, PATIENT) as processes, Watch(house) as watch:
        hears, speaks = processes.made
        before, others = hears.counts, speaks.counts
        house.proxy[hears.name].restart()
        wait_for("it to be back", lambda: hears.counts[0] > before[0]
                 and hears.counts[1] > before[1], BOUND_SECONDS)  # fmt: skip
        processes.mark()
        time.sleep(1)
        assert processes.silence() < 1
        assert speaks.counts == others
    assert watch.split == 0, watch.rows


def test_salt_undoes_no_failover_and_restarts_nothing(house: House) -> None:
    before = {name: house.on_disk(name) for name in house.numbers}
    done = house.module().failover(30)
    assert done["master"] != done["before"]
    assert {name: house.on_disk(name) for name in house.numbers} == before
    for name in house.redis:
        house.write("redis", name)
    for name in house.sentinel:
        house.write("sentinel", name)
    assert {name: house.on_disk(name) for name in house.numbers} == before
    # Even what does restart them undoes nothing: each comes back as what it was.
    for daemon in (*house.redis.values(), *house.sentinel.values()):
        daemon.restart()
        wait_for("peace", lambda: not house.status()["wrong"], 20)
        assert house.master() == done["master"]


@pytest.mark.parametrize(("account", "words"), [
    (redis_house.REPLICATION, ("INFO",)), (redis_house.REPLICATION, ("GET", "cache_v1:a:b")),
    (redis_house.REPLICATION, ("REPLICAOF", "NO", "ONE")),
    (redis_house.AT_REDIS, ("GET", "cache_v1:a:b")), (redis_house.AT_REDIS, ("SHUTDOWN",)),
    (redis_house.AT_REDIS, ("CONFIG", "SET", "dir", "/tmp")),
    (redis_house.AT_REDIS, ("PUBLISH", "lale.test", "x")), (redis_house.AT_REDIS, ("ACL", "LIST")),
    (redis_house.CHECK, ("INFO", "server")), (redis_house.CHECK, ("PUBLISH", "lale.test", "x")),
    (redis_house.CHECK, ("REPLICAOF", "NO", "ONE")),
    (redis_house.SYNAPSE, ("INFO", "replication")), (redis_house.SYNAPSE, ("ROLE",)),
])  # fmt: skip
def test_an_account_of_redis_may_do_its_own_alone(
    running: House, account: Json, words: tuple[str, ...]
) -> None:
    assert "NOPERM" in running.cli(running.master(), *words, account=account)


@pytest.mark.parametrize(("account", "words"), [
    (redis_house.CHECK, ("SENTINEL", "FAILOVER", "tests")),
    (redis_house.CHECK, ("SENTINEL", "MASTERS")), (redis_house.CHECK, ("INFO",)),
    (SENTINEL, ("SENTINEL", "REMOVE", "tests")), (SENTINEL, ("SENTINEL", "RESET", "*")),
    (SENTINEL, ("SENTINEL", "SET", "tests", "quorum", "1")),
    (SENTINEL, ("SENTINEL", "MONITOR", "x", "127.0.0.1", "1", "1")),
    (SENTINEL, ("ACL", "LIST")), (SENTINEL, ("SHUTDOWN",)),
])  # fmt: skip
def test_an_account_of_a_sentinel_may_do_its_own_alone(
    running: House, account: Json, words: tuple[str, ...]
) -> None:
    said = running.cli("dcs-1", *words, account=account, port=running.sentinel_port)
    assert "NOPERM" in said


def test_nobody_else_is_let_in(running: House) -> None:
    nobody = {"user": "default", "password": ""}
    for port in (running.port, running.sentinel_port):
        assert "WRONGPASS" in running.cli("redis-1", "PING", account=nobody, port=port)
        wrong = {**redis_house.CHECK, "password": "wrong"}
        assert "WRONGPASS" in running.cli("redis-1", "PING", account=wrong, port=port)


def test_a_redis_with_another_s_certificate_serves_nobody(house: House) -> None:
    """Neither Synapse nor Sentinel nor a replica compares the name; the proxy does."""
    master = house.master()
    where = house.top / master / "redis"
    kept = {kind: (where / f"tls.{kind}").read_text() for kind in ("crt", "key")}
    another = house.authority.issue("somebody")
    for kind in kept:
        (where / f"tls.{kind}").write_text(another[kind])
    try:
        house.redis[master].restart()
        wait_for("nobody to be sent there", lambda: house.serving() == {""}, 10)
        time.sleep(5)
        assert house.serving() == {""}
        assert house.role(master) == "master", "or it is no test of this"
    finally:
        for kind, text in kept.items():
            (where / f"tls.{kind}").write_text(text)
        house.redis[master].restart()


def test_one_redis_alone_has_the_same_address(renderer: trees.Renderer) -> None:
    """The way back, and where it begins."""
    with folder() as top:
        house = House(renderer, top, ("redis-1",), ())
        try:
            house.start()
            with bus(house, PATIENT) as processes:
                processes.mark()
                house.redis["redis-1"].kill()
                wait_for("that it is gone", lambda: house.serving() == {""}, 10)
                house.redis["redis-1"].start()
                assert processes.wait(BOUND_SECONDS) < BOUND_SECONDS
        finally:
            house.end()


@pytest.mark.soak
@pytest.mark.parametrize("says", [PATIENT, STOCK], ids=["plugin", "stock"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_how_long_it_takes(
    running: House, fault: Callable[[House, str], None], says: float
) -> None:
    """Without the plugin the bound is not always held: what speaks may wait for ten seconds."""
    took, split = [], 0.0
    for _ in range(5):
        master = running.master()
        with bus(running, says) as processes, Watch(running) as watch:
            processes.mark()
            fault(running, master)
            took.append(processes.wait(60))
        split += watch.split
        running.network.mend()
        if running.redis[master].process is None:
            running.redis[master].start()
        running.redis[master].freeze(False)
        running.rest()
    print(f"{fault.__name__}: median {statistics.median(took):.1f} s, worst {max(took):.1f} s, "
          f"split {split:.1f} s")
    assert split == 0
    if says == PATIENT:
        assert max(took) < BOUND_SECONDS
