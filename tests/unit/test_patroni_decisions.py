"""What Patroni's cluster is set to, what becomes of a data folder, who takes over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules.minion_modules import load

etcd: Any = load("_modules", "saltworks_etcd_keys")
patroni: Any = load("_modules", "saltworks_patroni_rules")

RUNNING = {"max_connections": 204, "wal_level": "replica", "max_worker_processes": 8}


def test_a_leader_has_stepped_down_before_another_may_lead() -> None:
    timers = patroni.TIMERS
    assert timers["loop_wait"] + 2 * timers["retry_timeout"] <= timers["ttl"]
    # etcd's second, the look for the dead one, and the promotion: within 20 s.
    assert timers["ttl"] + 1 + 2 + 1 < 20


@pytest.mark.parametrize(
    ("durability", "synchronous", "strict"),
    [("async", False, False), ("sync", True, False), ("sync-strict", True, True)],
)
def test_durability(durability: str, synchronous: bool, strict: bool) -> None:
    made = patroni.dynamic(durability, 5, RUNNING, [])
    assert (made["synchronous_mode"], made["synchronous_mode_strict"]) == (synchronous, strict)
    assert made["maximum_lag_on_failover"] == 5
    # Else one whose disk is full leads for ever, where nobody lacks what it has acknowledged.
    assert (made["primary_start_timeout"] == 0) is synchronous
    assert made["postgresql"]["parameters"]["hot_standby_feedback"] == "on"


def test_nobody_is_promoted_while_synapse_believes_the_old_primary() -> None:
    """The plugin on Synapse's machines and Patroni's timers cannot import each other."""
    plugin = Path(__file__).parents[2] / "formulas/synapse/files/plugins/saltworks_patience.py"
    (lease,) = re.findall(r"^LEASE_SECONDS = ([0-9.]+)$", plugin.read_text(), re.MULTILINE)
    timers = patroni.TIMERS
    oldest = timers["loop_wait"] + 2 * timers["retry_timeout"]
    # Who promotes asks the old one for 2 s (Patroni's own).
    assert float(lease) <= timers["ttl"] - oldest + 2


def test_a_durability_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="async, sync, sync-strict"):
        patroni.dynamic("quick", 5, {}, [])


def test_a_second_time_nothing_differs() -> None:
    wanted = patroni.dynamic("sync", 5, patroni.carried({}, RUNNING), ["legacy"])
    now = patroni.merged({"pause": True}, wanted)
    assert now["pause"] is True
    again = patroni.dynamic("sync", 5, patroni.carried(now, {"max_connections": 9}), ["legacy"])
    assert patroni.differences(now, patroni.merged(now, again)) == {}
    assert again["postgresql"]["parameters"]["max_connections"] == 204


def test_what_somebody_else_set_stays() -> None:
    now = {"postgresql": {"parameters": {"max_connections": 300, "log_min_duration": 1}}}
    made = patroni.merged(now, patroni.dynamic("sync", 5, patroni.carried(now, RUNNING), []))
    assert made["postgresql"]["parameters"]["max_connections"] == 300
    assert made["postgresql"]["parameters"]["log_min_duration"] == 1
    changed = patroni.differences(now, made)
    assert changed["synchronous_mode"] == {"old": None, "new": True}
    assert "postgresql.parameters.max_connections" not in changed
    assert changed["postgresql.parameters.hot_standby_feedback"] == {"old": None, "new": "on"}


def test_slots_of_others_are_named() -> None:
    rows = patroni.dynamic("async", 5, {}, ["b", "a"])["ignore_slots"]
    assert [row["name"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("databases", "spaces", "found"),
    [
        ({"1": ["112", "PG_VERSION"], "4": ["112_fsm"], "5": ["1259"]}, [], 0),
        ({"1": [], "4": [], "5": ["16384"]}, [], 1),
        ({"1": [], "4": [], "5": ["16390_vm", "16390.1"]}, [], 1),
        ({"1": [], "4": [], "5": [], "16385": []}, [], 1),
        ({"1": [], "pgsql_tmp": ["pgsql_tmp1.0"]}, ["16400"], 1),
        ({}, [], 0),
    ],
)
def test_only_what_initdb_made_counts_as_empty(
    databases: dict[str, list[str]], spaces: list[str], found: int
) -> None:
    assert len(patroni.files_of_users(databases, spaces)) == found


@pytest.mark.parametrize(
    ("initialized", "own", "adopts", "following", "filled", "what"),
    [
        ("1", "1", False, False, ["x"], "attach"),
        ("1", "1", False, True, ["x"], "attach"),
        ("1", "", False, False, [], "copy"),
        ("1", "2", False, False, [], "clear"),
        ("1", "2", True, False, [], "clear"),
        ("1", "2", True, False, ["x"], "refuse"),
        ("", "2", True, False, ["x"], "attach"),
        ("", "2", True, True, ["x"], "refuse"),
        ("", "2", False, False, [], "refuse"),
        ("", "", True, False, [], "refuse"),
    ],
)
def test_what_becomes_of_a_data_folder(
    initialized: str, own: str, adopts: bool, following: bool, filled: list[str], what: str
) -> None:
    done, why = patroni.settle(initialized, own, adopts, following, filled)
    assert done == what
    assert why


@pytest.mark.parametrize(
    ("leader", "runs", "following", "leads"),
    [
        ("a", True, False, True),
        ("a", False, False, True),
        ("b", True, True, False),
        # It died, and another one leads: it must not serve.
        ("b", False, False, False),
        ("", False, False, True),
        ("", False, True, False),
        ("", True, False, False),
    ],
)
def test_whose_server_serves(leader: str, runs: bool, following: bool, leads: bool) -> None:
    assert patroni.leads("a", leader, runs, following) is leads


def shown(**lags: int | str) -> dict[str, Any]:
    rows = [{"name": "a", "role": "leader", "state": "running", "timeline": 3}]
    rows += [
        {"name": name, "role": "replica", "state": "running", "lag": lag, "timeline": 3}
        for name, lag in lags.items()
    ]
    made: dict[str, Any] = patroni.joined({"members": rows}, {"name": "a"}, {})
    return made


def test_how_it_stands() -> None:
    answer = {
        "members": [
            {"name": "a", "role": "leader", "state": "running", "timeline": 2,
             "pending_restart": True},
            {"name": "b", "role": "sync_standby", "state": "running", "timeline": 2, "lag": 7},
            {"name": "c", "role": "replica", "state": "creating replica", "lag": "unknown"},
        ],
        "pause": True,
    }
    here = {"name": "a", "senders": [{"name": "b", "replay_lag": 0.25}]}
    made = patroni.joined(answer, here, {"synchronous_mode": True})
    assert (made["leader"], made["pause"], made["durability"]) == ("a", True, "sync")
    assert made["sync"] == ["b"]
    assert made["members"]["a"]["pending_restart"] is True
    assert (made["members"]["b"]["lag"], made["members"]["b"]["lag_seconds"]) == (7, 0.25)
    assert made["members"]["c"]["lag"] is None


@pytest.mark.parametrize(("role", "leader"), [("master", "a"), ("replica", "")])
def test_without_etcd_a_member_speaks_for_itself_alone(role: str, leader: str) -> None:
    alone = {"state": "running", "role": role, "timeline": 2}
    made = patroni.by_itself(alone, {"name": "a"}, "no answer")
    assert (made["leader"], made["dcs"], made["durability"]) == (leader, "no answer", "")
    assert list(made["members"]) == ["a"]
    assert (made["members"]["a"]["state"], made["members"]["a"]["timeline"]) == ("running", 2)


def test_the_nearest_takes_over() -> None:
    assert patroni.candidate(shown(b=9, c=3, d="unknown"), "", 100) == "c"
    assert patroni.candidate(shown(b=9, c=3), "b", 100) == "b"
    coming = shown(b=9, c=3)
    coming["members"]["c"]["may_lead"] = False
    assert patroni.candidate(coming, "", 100) == "b", "the other one is not known to everybody yet"


@pytest.mark.parametrize(
    ("status", "wanted", "why"),
    [
        (shown(b=3), "a", "is the leader already"),
        (shown(b=3), "x", "is no member"),
        (shown(b=300), "b", "300 bytes behind"),
        (shown(), "", "no standby can not take over"),
        ({**shown(b=3), "pause": True}, "", "paused"),
        ({**shown(b=3), "leader": ""}, "", "no leader"),
        ({**shown(b=3), "durability": "sync"}, "b", "a synchronous standby"),
    ],
)
def test_who_can_not_take_over(status: dict[str, Any], wanted: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        patroni.candidate(status, wanted, 100)


NAMES = {"1": "x", "2": "y", "3": "z"}


@pytest.mark.parametrize(
    ("statuses", "healthy", "leader"),
    [
        ({"x": "1", "y": "1", "z": "1"}, True, "x"),
        ({"x": "1", "y": "1"}, True, "x"),
        ({"x": "1"}, False, "x"),
        ({"x": "1", "y": "2"}, False, ""),
        ({"x": "0", "y": "0", "z": "0"}, False, ""),
        ({}, False, ""),
    ],
)
def test_etcd_is_healthy_by_most_of_its_members(
    statuses: dict[str, str], healthy: bool, leader: str
) -> None:
    made = etcd.health({name: {"leader": row} for name, row in statuses.items()}, NAMES)
    assert (made["healthy"], made["leader"]) == (healthy, leader)
    assert {name for name, row in made["members"].items() if row["up"]} == set(statuses)


def test_the_end_of_a_range() -> None:
    assert etcd.range_end("/service/a/") == b"/service/a0"
