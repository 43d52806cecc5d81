"""What is wrong with the database's cluster, in words."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks.parts.database import health

GIB = 1 << 30
ETCD = {"dcs-1": "leads", "dcs-2": "follows", "dcs-3": "follows"}
NAMES = ("database", "database-2")


def member(role: str, **words: Any) -> dict[str, Any]:
    return {"role": role, "state": "running", "timeline": 2, "pending_restart": False, **words}


def status(**words: Any) -> dict[str, Any]:
    return {
        "leader": "database", "pause": False, "durability": "sync", "sync": ["database-2"],
        "dcs": "",
        "members": {"database": member("leader"), "database-2": member("sync_standby")},
        "here": {"slots": [slot("database_2")], "disk": {"free": 50 * GIB, "size": 100 * GIB}},
        **words,
    }  # fmt: skip


def slot(name: str, **words: Any) -> dict[str, Any]:
    return {"name": name, "active": True, "wal_status": "reserved", "kept_bytes": 0, **words}


def said(found: dict[str, Any], etcd: dict[str, str] = ETCD, **rows: Any) -> list[str]:
    rows = {"database": found, "database-2": {"here": {}}, **rows}
    return [str(row) for row in health.problems(NAMES, rows, found, etcd)]


def test_of_a_cluster_that_is_whole_nothing_is_said() -> None:
    assert said(status()) == []


@pytest.mark.parametrize(("change", "words"), [
    ({"leader": ""}, "has no primary: nobody takes writes -> see 'No standby may lead'"),
    ({"pause": True}, "is paused: nobody takes over -> salt database patroni.resume"),
    ({"sync": []}, "sync: no standby has all"),
    ({"sync": [], "durability": "sync-strict"}, "no write is acknowledged"),
    ({"members": {"database": member("leader")}}, "database-2: has no key in etcd"),
    ({"members": {"database": member("leader"),
                  "database-2": member("replica", state="start failed")}},
     "database-2: PostgreSQL is start failed -> PostgreSQL's log"),
    ({"members": {"database": member("leader"), "database-2": member("replica", timeline=1)}},
     "database-2: is on timeline 1, the primary on 2 -> if it stays so: salt-run database.reinit"),
    ({"members": {"database": member("leader", pending_restart=True),
                  "database-2": member("replica")}},
     "settings wait for a restart -> salt database patroni.restart"),
    ({"here": {"slots": [slot("database_2", wal_status="lost", active=False)]}},
     "slot database_2: has lost WAL that it needed -> salt-run database.reinit database-2"),
    ({"here": {"slots": [slot("reports", wal_status="lost", active=False)]}},
     "SELECT pg_drop_replication_slot('reports')"),
    ({"here": {"slots": [slot("reports", active=False, kept_bytes=3 * GIB)]}},
     "slot reports: keeps 3.0 GiB of WAL for somebody who is away -> see 'A slot keeps WAL'"),
    ({"here": {"disk": {"free": GIB, "size": 100 * GIB}}},
     "database: 1024 of 102400 MiB are free for the database -> see 'The disk is full'"),
])  # fmt: skip
def test_each_trouble_has_its_next_step(change: dict[str, Any], words: str) -> None:
    (line,) = said(status(**change))
    assert words in line


def test_async_promises_no_standby() -> None:
    assert said(status(sync=[], durability="async")) == []


def test_one_etcd_of_three_is_a_machine_s_trouble_and_two_are_the_cluster_s() -> None:
    one = {**ETCD, "dcs-3": "did not answer within 30 s"}
    assert said(status(), one) == [
        "dcs-3: etcd: did not answer within 30 s -> journalctl -u etcd on dcs-3"
    ]
    two = {**one, "dcs-2": "did not answer within 30 s"}
    assert len(said(status(), two)) == 2, "that a minion is away says nothing of etcd"
    gone = said(status(dcs="no answer"), two)
    assert any("and 1 of 3 say that they serve: nothing fails over" in line for line in gone)


def test_without_etcd_nobody_is_said_to_be_away_for_that_alone() -> None:
    alone = status(
        dcs="it does not answer", members={"database": member("leader")}, durability="", sync=[]
    )
    assert [line.partition(":")[0] for line in said(alone)] == ["etcd"]
    line, _ = said(alone, **{"database-2": {"error": "did not answer within 15 s"}})
    assert line.startswith("database-2: did not answer within 15 s -> see the machine")


def test_a_slot_is_known_by_its_member_s_name() -> None:
    assert health.slot_of("Database-2.b") == "database_2_b"
