"""Who serves of a set of Redis machines, what is wrong, and what Sentinel and Salt share."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import SALT, load

rules: Any = load("_modules", "saltworks_redis_rules")
proxy: Any = load("_modules", "saltworks_redis_proxy")

A, B, C = "198.18.0.16", "198.18.0.17", "198.18.0.18"
MEMBERS = {
    "servers": {"redis-1": A, "redis-2": B},
    "sentinels": {"redis-1": A, "redis-2": B, "dcs-1": C},
}
MASTER = f"""\
# Replication\r
role:master\r
connected_slaves:1\r
slave0:ip={B},port=6379,state=online,offset=98,lag=1\r
master_repl_offset:100\r
"""
REPLICA = f"""\
# Replication\r
role:slave\r
master_host:{A}\r
master_link_status:up\r
slave_repl_offset:98\r
master_repl_offset:98\r
"""


def said() -> dict[str, Any]:
    return {"redis-1": rules.replication(MASTER), "redis-2": rules.replication(REPLICA)}


def named(*addresses: str) -> dict[str, str]:
    return dict(zip(MEMBERS["sentinels"], addresses, strict=False))


def joined(
    servers: Mapping[str, Any], names: Mapping[str, str], **errors: str
) -> dict[str, Any]:
    why = {key.replace("__", " ").replace("_", "-"): text for key, text in errors.items()}
    made: dict[str, Any] = rules.joined(MEMBERS, servers, names, why)
    return made


def program(formula: str, name: str) -> Any:
    path = SALT.parent / "formulas" / formula / "files" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_redis_says() -> None:
    assert said()["redis-1"] == {
        "role": "master", "offset": 100,
        "replicas": {B: {"online": True, "lag": 1, "offset": 98}},
    }
    assert said()["redis-2"] == {
        "role": "replica", "offset": 98, "replicas": {}, "follows": A, "link": "up"
    }


def test_all_is_well() -> None:
    shown = joined(said(), named(A, A, A))
    assert shown["wrong"] == []
    assert (shown["master"], shown["agree"], shown["quorum"]) == ("redis-1", 3, 2)
    assert shown["servers"]["redis-2"] == {
        "up": True, "role": "replica", "follows": "redis-1", "link": "up", "lag": 1, "behind": 2
    }
    assert rules.candidate(shown) == ""


def masters(*names: str, followed: bool = False) -> dict[str, Any]:
    """Those say that they are the master; the others follow redis-1."""
    rows = said()
    for name in rows:
        if name in names:
            rows[name] = {"role": "master", "offset": 1, "replicas": {}}
    if followed:
        rows["redis-1"]["replicas"] = {B: {"online": True, "lag": 0, "offset": 1}}
    return rows


@pytest.mark.parametrize(("rows", "votes", "wanted"), [
    (said(), (A, A, A), "redis-1"),
    # Sentinels are away: its replica speaks for it.
    (said(), (A,), "redis-1"), (said(), (), "redis-1"),
    # The replica is away: sentinels speak for it.
    (masters("redis-1"), (A, A), "redis-1"),
    # Neither: it may be cut off.
    (masters("redis-1"), (A,), ""), (masters("redis-1"), (), ""),
    # Most sentinels have another one: an old master is left alone, even if it has a replica.
    (masters("redis-1", "redis-2"), (A, B, B), "redis-2"),
    (masters("redis-1", "redis-2", followed=True), (A, B, B), "redis-2"),
    # Two that say so, and nobody knows.
    (masters("redis-1", "redis-2"), (A, B), ""),
    # Sentinels name one that does not say so yet, or is away.
    (said(), (B, B, B), ""), ({"redis-2": said()["redis-2"]}, (A, A, A), ""),
])  # fmt: skip
def test_who_serves(rows: dict[str, Any], votes: tuple[str, ...], wanted: str) -> None:
    assert rules.serving(MEMBERS["servers"], rows, votes, 3) == wanted


@pytest.mark.parametrize(("change", "wanted"), [
    ({"lag": 2}, "redis-1"), ({"lag": 3}, ""), ({"lag": -1}, ""), ({"online": False}, ""),
])
def test_a_replica_s_word_must_be_fresh(change: dict[str, Any], wanted: str) -> None:
    rows = said()
    rows["redis-1"]["replicas"][B].update(change)
    assert rules.serving(MEMBERS["servers"], rows, [], 3) == wanted


def test_of_three_both_others_must_follow() -> None:
    servers = {**MEMBERS["servers"], "redis-3": C}
    assert rules.serving(servers, said(), [A], 3) == ""
    rows = said()
    rows["redis-1"]["replicas"][C] = {"online": True, "lag": 0, "offset": 1}
    assert rules.serving(servers, rows, [A], 3) == "redis-1"


def test_one_redis_alone_serves_if_it_says_so() -> None:
    servers = {"redis-1": A}
    assert rules.serving(servers, masters("redis-1"), [], 0) == "redis-1"
    shown = rules.joined({"servers": servers, "sentinels": {}}, masters("redis-1"), {}, {})
    assert shown["wrong"] == []


@pytest.mark.parametrize(("rows", "votes", "errors", "words"), [
    (said(), named(A, A), {"sentinel__dcs_1": "timed out"},
     ["the sentinel of dcs-1 does not answer (timed out): with one more away no failover"]),
    (said(), named(A), {},
     ["the sentinel of redis-2 does not answer (not asked): no failover can happen",
      "the sentinel of dcs-1"]),
    (said(), named(A, A, B), {}, ["sentinels name different masters: redis-1, redis-2"]),
    (masters("redis-1"), named(A, A, A), {}, []),
    ({"redis-1": masters("redis-1")["redis-1"]}, named(A, A, A), {"redis__redis_2": "refused"},
     ["Redis of redis-2 does not answer (refused)"]),
    (masters("redis-1", "redis-2"), named(A, A, A), {},
     ["redis-2 says that it is the master, too; nobody is sent to it"]),
    ({}, named(A, A, A), {}, ["no Redis serves", "Redis of redis-1", "Redis of redis-2"]),
])  # fmt: skip
def test_what_is_wrong_is_said(
    rows: dict[str, Any], votes: dict[str, str], errors: dict[str, str], words: list[str]
) -> None:
    wrong = joined(rows, votes, **errors)["wrong"]
    if not words:
        words = ["redis-2 has no link to redis-1"]
    assert len(wrong) == len(words), wrong
    for row, text in zip(wrong, words, strict=True):
        assert row["what"].startswith(text)
        assert row["next"]


@pytest.mark.parametrize(("change", "text"), [
    ({"follows": B}, "redis-2 follows redis-2, and redis-1 is the master"),
    ({"link": "down"}, "redis-2 has no link to redis-1: it cannot take over"),
])
def test_a_replica_that_cannot_take_over_is_said(change: dict[str, Any], text: str) -> None:
    rows = said()
    rows["redis-2"].update(change)
    shown = joined(rows, named(A, A, A))
    assert [row["what"] for row in shown["wrong"]] == [text]
    assert rules.candidate(shown) == "no replica of redis-1 is up, linked and near"


def test_a_failover_wants_sentinels_and_a_master() -> None:
    assert rules.candidate(joined(said(), named(A))).startswith("only 1 sentinels answer")
    assert rules.candidate(joined({}, named(A, A, A))).startswith("no Redis serves")


def test_a_failover_that_may_not_be_is_not_begun() -> None:
    module: Any = load("_modules", "saltworks_redis_set", {
        "redis_rules.candidate": lambda shown: "no replica is there",
    })
    module.__dict__["status"] = dict
    with pytest.raises(CommandExecutionError, match="not begun: no replica is there"):
        module.failover()


def test_what_does_not_agree_is_told_after_the_bound() -> None:
    module: Any = load("_modules", "saltworks_redis_set")
    module.__dict__["status"] = lambda: joined(said(), named(A, A))
    with pytest.raises(CommandExecutionError, match=r"dcs-1 does not answer.*systemctl status"):
        module.agreed(0)
    module.__dict__["status"] = lambda: joined(said(), named(A, A, A))
    assert module.agreed(0)["master"] == "redis-1"
    with pytest.raises(CommandExecutionError, match="the master is redis-1"):
        module.agreed(0, "redis-2")


def test_a_machine_without_sentinel_says_what_to_do(tmp_path: Path) -> None:
    module: Any = load("_modules", "saltworks_redis_set")
    module.__dict__["CONFIG_DIR"] = str(tmp_path)
    with pytest.raises(CommandExecutionError, match="apply the state sentinel"):
        module.status()


SETTINGS = "bind 198.18.0.16\nmasterauth secret\n"


def test_redis_starts_as_it_was_and_with_salt_s_settings() -> None:
    compose = program("redis", "redis_compose").composed
    first = f"# Managed by Salt\nreplicaof {A} 6379\n"
    assert compose(SETTINGS, first, None) == f"{SETTINGS}replicaof {A} 6379\n"
    # CONFIG REWRITE has written all of it anew, and Sentinel whom it follows now.
    kept = f'bind "x"\nmasterauth "old"\nmaxclients 7\nreplicaof {C} 6379\n# Generated\nuser x on\n'
    assert compose(SETTINGS, first, kept) == f"{SETTINGS}replicaof {C} 6379\n"
    # It was promoted: then there is no such line, and the first start's counts no more.
    assert compose(SETTINGS, first, "bind x\n") == SETTINGS


SENTINEL = f"sentinel monitor synapse {A} 6379 2\nsentinel auth-user synapse sentinel\n"
KEPT = f"""\
sentinel monitor synapse {B} 6379 3
sentinel auth-user synapse old
sentinel config-epoch synapse 4
sentinel leader-epoch synapse 5
sentinel known-replica synapse {A} 6379
sentinel known-replica synapse 198.18.0.99 6379
sentinel known-sentinel synapse {C} 26379 abc
sentinel known-sentinel synapse 198.18.0.99 26379 abd
sentinel known-sentinel other {C} 26379 abc
sentinel myid 0123
sentinel current-epoch 5
latency-tracking-info-percentiles 50
"""


def test_sentinel_starts_with_what_it_knew_of_those_that_are_declared() -> None:
    compose = program("sentinel", "sentinel_compose").composed
    members = {**MEMBERS, "set": "synapse"}
    assert compose(SENTINEL, members, "") == SENTINEL
    assert compose(SENTINEL, members, KEPT).splitlines() == [
        f"sentinel monitor synapse {B} 6379 2",
        "sentinel auth-user synapse sentinel",
        "sentinel config-epoch synapse 4",
        "sentinel leader-epoch synapse 5",
        f"sentinel known-replica synapse {A} 6379",
        f"sentinel known-sentinel synapse {C} 26379 abc",
        "sentinel myid 0123",
        "sentinel current-epoch 5",
    ]


def test_a_master_that_is_no_longer_declared_is_not_the_master() -> None:
    compose = program("sentinel", "sentinel_compose").composed
    members = {**MEMBERS, "servers": {"redis-1": A}, "set": "synapse"}
    assert compose(SENTINEL, members, KEPT).startswith(f"sentinel monitor synapse {A} 6379 2\n")


@pytest.mark.parametrize("name", ["redis_compose", "sentinel_compose"])
def test_what_is_composed_is_its_owner_s_alone(name: str, tmp_path: Path) -> None:
    made = program(name.partition("_")[0], name)
    (tmp_path / "a").write_text(SENTINEL)
    (tmp_path / "b").write_text('{"set": "synapse", "servers": {}, "sentinels": {}}')
    target = tmp_path / "running"
    made.main(str(tmp_path / "a"), str(tmp_path / "b"), str(target))
    assert target.read_text() == SENTINEL
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "running"]


STATS = """\
# pxname,svname,scur,status,
redis,FRONTEND,7,OPEN,
to-redis-1,redis-1,7,UP,
to-redis-2,redis-2,0,DOWN,
to-redis-2,BACKEND,0,DOWN,
master-redis-1,redis-1,0,UP,
master-redis-2,redis-2,0,DOWN,
follows-redis-1-redis-2,redis-1,0,UP 1/2,
follows-redis-2-redis-1,redis-2,0,DOWN,
named-redis-1,dcs-1,0,UP,
named-redis-1,redis-1,0,UP,
named-redis-1,redis-2,0,DOWN,
named-redis-2,dcs-1,0,DOWN 1/3,
"""


def test_what_a_proxy_says() -> None:
    shown = proxy.read(STATS)
    assert (shown["serves"], shown["sessions"]) == ("redis-1", 7)
    assert shown["redises"]["redis-1"] == {
        "says_master": True, "named_by": ["dcs-1", "redis-1"], "followed_by": ["redis-2"]
    }
    assert shown["redises"]["redis-2"] == {
        "says_master": False, "named_by": [], "followed_by": []
    }
    two = STATS.replace("to-redis-2,redis-2,0,DOWN", "to-redis-2,redis-2,0,UP")
    assert proxy.read(two)["serves"] == ""


def test_a_proxy_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match="systemctl status haproxy"):
        proxy.status(str(tmp_path / "none"))


class Beacon:
    """The beacon, and what the set answers to it."""

    def __init__(self) -> None:
        self.answer: Any = joined(said(), named(A, A, A))
        self.module: Any = load("_beacons", "redis_set", {"redis_set.status": self.status})

    def status(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return copy.deepcopy(self.answer)

    def looks(self, times: int = 1) -> list[dict[str, Any]]:
        return [row for _ in range(times) for row in self.module.beacon([{"interval": 15}])]


def test_the_beacon_says_what_stays_wrong_once_and_when_it_is_right_again() -> None:
    beacon = Beacon()
    assert beacon.looks(3) == []
    beacon.answer = joined(said(), named(A, A))
    assert beacon.looks() == []
    (event,) = beacon.looks(3)
    assert event["tag"] == "changed"
    assert event["master"] == "redis-1"
    assert event["wrong"] == [row["what"] for row in beacon.answer["wrong"]]
    beacon.answer = joined(said(), named(A, A, A))
    assert [row["wrong"] for row in beacon.looks(3)] == [[]]


def test_the_beacon_is_silent_about_what_passes() -> None:
    beacon = Beacon()
    beacon.looks()
    good = beacon.answer
    beacon.answer = joined(said(), named(A, A))
    beacon.looks()
    beacon.answer = good
    assert beacon.looks(3) == []


def test_each_trouble_must_last_by_itself() -> None:
    beacon = Beacon()
    beacon.looks()
    beacon.answer = joined(said(), named(A, A))
    assert beacon.looks() == []
    other = masters("redis-1")
    beacon.answer = joined(other, named(A, A, A))
    assert beacon.looks() == []
    (event,) = beacon.looks(3)
    assert event["wrong"] == [row["what"] for row in beacon.answer["wrong"]]


def test_why_it_does_not_answer_is_said_and_no_news() -> None:
    beacon = Beacon()
    beacon.looks()
    told = []
    for why in ("timed out", "no route (to it)", "timed out", "refused"):
        beacon.answer = joined(said(), named(A, A), sentinel__dcs_1=why)
        told += beacon.looks()
    (event,) = told
    assert "(no route (to it)): with one more away" in event["wrong"][0]


def test_the_beacon_s_first_look_tells_of_trouble() -> None:
    beacon = Beacon()
    beacon.answer = CommandExecutionError("no state")
    assert beacon.looks(2) == [{"tag": "changed", "master": "", "wrong": ["no state"]}]


def test_numbers_are_no_news() -> None:
    beacon = Beacon()
    beacon.looks()
    for lag in (3, 4, 5, 6):
        rows = said()
        rows["redis-1"]["replicas"][B]["lag"] = lag
        beacon.answer = joined(rows, named(A, A, A))
        told = beacon.looks()
        assert bool(told) == (lag == 4), told


@pytest.mark.parametrize(("config", "good"), [
    ([{"interval": 15}], True), ([], True), ({"interval": 15}, False), (["interval"], False),
])
def test_the_beacon_s_configuration(config: Any, good: bool) -> None:
    assert load("_beacons", "redis_set").validate(config)[0] is good
