"""M4's part database: what each machine gets of the cluster, and what it must show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from saltworks import (
    clustermap,
    membership,
    milestone,
    parts,
    plan,
    precheck_facts,
    registry,
    slices,
    verify,
)
from saltworks.parts.database import cluster

from tests.cluster import (
    AFTER_M4,
    DATABASE_MAP,
    DATABASE_WAYS,
    clustered,
    databases,
    members,
)
from tests.lab.driver import PROJECT

MAP = DATABASE_MAP
BOTH = databases("ready", "ready")
SCHEMA = clustermap.schema(PROJECT / "pillar/schema/cluster.schema.json")


def slice_of(machine: str, placed: plan.Placement, cmap: Any = MAP) -> dict[str, Any]:
    return slices.slice_for(cmap, placed, machine, lambda name: f"<{name}>")


def test_etcd_runs_once_it_is_recorded_and_lets_in_databases_alone() -> None:
    bare = slice_of("dcs-1", clustered("cluster to come"))
    assert bare["saltworks"]["states"] == ["base", "etcd.absent", "firewall.absent"]
    assert "<" not in str(bare), "and has no secret"
    found = slice_of("dcs-2", clustered("cluster watched"))
    assert found["saltworks"]["states"] == ["base", "firewall", "etcd"]
    peers = ["198.18.0.18", "198.18.0.19", "198.18.0.20"]
    assert found["firewall"]["ports"] == {
        2379: ["198.18.0.13", *peers], 2380: peers,
    }  # fmt: skip
    assert found["etcd"]["name"] == "dcs-2"
    assert list(found["etcd"]["peers"].values()) == peers
    assert found["etcd"]["certificate"]["key"] == "<pki_dcs-2_key>"


def test_until_the_cluster_is_there_the_first_machine_is_m3_s_and_the_others_are_nothing() -> None:
    for name in ("cluster to come", "cluster watched"):
        found = slice_of("database", clustered(name))
        assert found["saltworks"]["states"] == ["base", "firewall", "postgres"]
        other = slice_of("database-2", clustered(name, *databases("ready", "joining")[1:]))
        assert "patroni.absent" in other["saltworks"]["states"]
        assert "<" not in str(other)


def test_members_run_patroni_and_nobody_else_has_a_secret() -> None:
    placed = clustered("cluster there", *databases("ready", "joining"))
    for name in ("database", "database-2"):
        found = slice_of(name, placed)
        states = found["saltworks"]["states"]
        assert states[:2] == ["base", "firewall"]
        # What its PostgreSQL calls is there before it starts.
        assert states.index("pgbackrest.configured") < states.index("patroni")
        assert found["postgres"]["archive"]["archive_mode"] == "on"
        assert found["pgbackrest"]["unit"] == "patroni"
        assert found["pgbackrest"]["cipher_pass"] == "<backup_cipher>"
        assert found["pgbackrest"]["store"]["endpoint"] == "storage:9000"
        row = found["patroni"]
        assert (row["name"], row["scope"]) == (name, "lale")
        assert row["durability"] == "sync"
        assert row["reads_by"] == "synapse_user"
        assert row["etcd"]["hosts"] == ["dcs-1:2379", "dcs-2:2379", "dcs-3:2379"]
        assert row["peers"] == ["198.18.0.13/32", "198.18.0.17/32"]
        assert [each["address"] for each in row["admits"]] == ["198.18.0.12/32", "198.19.0.0/16"]
        assert found["firewall"]["ports"][8008] == ["198.18.0.13", "198.18.0.17"]
    for states in (("ready",), ("ready", "gone")):
        gone = slice_of("database-2", clustered("cluster there", *databases(*states)))
        assert gone["saltworks"]["states"][1:] == [
            "patroni.absent", "postgres.absent", "pgbackrest.absent", "firewall.absent",
        ]  # fmt: skip
        assert "<" not in str(gone)


def test_one_that_is_gone_is_let_in_nowhere() -> None:
    rows = ((databases("ready", "joining"), True), (databases("ready", "gone"), False))
    for members_, there in rows:
        placed = clustered("cluster there", *members_)
        ports = slice_of("database", placed)["firewall"]["ports"]
        assert [("198.18.0.17" in ports[port]) for port in (5432, 8008)] == [there, there]
        assert ("198.18.0.17/32" in slice_of("database", placed)["patroni"]["peers"]) is there
        assert ("198.18.0.17" in slice_of("dcs-1", placed)["firewall"]["ports"][2379]) is there


def test_only_where_synapse_looks_may_a_primary_be() -> None:
    placed = clustered("cluster there", *databases("ready", "joining"))
    leads = [slice_of(name, placed)["patroni"]["may_lead"] for name in ("database", "database-2")]
    assert leads == [True, False]
    assert slice_of("database-2", clustered("cluster there", *BOTH))["patroni"]["may_lead"]


def test_one_that_the_map_does_not_name_any_more_is_a_database_until_it_has_left() -> None:
    rows = {name: row for name, row in MAP["machines"].items() if name != "database-2"}
    cmap = {**MAP, "machines": rows}
    placed = clustered("cluster there", *BOTH)
    found = slice_of("database-2", placed, cmap)
    assert found["saltworks"]["role"] == "database"
    assert "patroni" in found["saltworks"]["states"]
    assert found["firewall"]["ports"][5432]
    # Synapse finds it still.
    assert slice_of("synapse", placed, cmap)["base"]["hosts"]["database-2"] == "198.18.0.17"
    gone = clustered("cluster there", *databases("ready", "gone"))
    assert "database-2" not in slice_of("synapse", gone, cmap)["base"]["hosts"]


@pytest.mark.parametrize(
    ("states", "status_", "said"),
    [
        (("ready", "ready"), {"leader": "database", "durability": "sync"}, ""),
        (("ready", "joining"), {"leader": "database", "durability": "sync"}, "is the last"),
        (("ready", "ready"), {"leader": "", "durability": "sync"}, "no primary now"),
        (("ready", "ready"), {"leader": "database", "durability": "sync-strict"}, "sync-strict"),
        (("ready", "ready"), {"leader": "database", "dcs": "no answer"}, "etcd does not answer"),
    ],
)
def test_who_may_not_leave(states: Any, status_: dict[str, Any], said: str) -> None:
    placed = clustered("cluster there", *databases(*states))
    wrong = cluster.leave_problems(placed, "database", status_)
    assert said in "".join(map(str, wrong))
    assert bool(wrong) is bool(said)


def test_the_store_lets_the_databases_in_once_they_are_a_cluster() -> None:
    for name, there in (("cluster watched", False), ("cluster there", True)):
        found = slice_of("storage", clustered(name, *BOTH))
        assert found["storage"]["buckets"] == ["database"]
        assert ("198.18.0.17" in found["firewall"]["ports"][9000]) is there


@pytest.mark.parametrize(("state", "there"), [("joining", True), ("gone", False)])
def test_the_store_and_etcd_let_in_who_joins_and_nobody_who_is_gone(
    state: registry.State, there: bool
) -> None:
    placed = clustered("cluster there", *databases("ready", state))
    assert cluster.gates(DATABASE_MAP, placed) == ["dcs-1", "dcs-2", "dcs-3", "storage"]
    for name, port in (("storage", 9000), ("dcs-1", 2379)):
        found = slice_of(name, placed)["firewall"]["ports"][port]
        assert ("198.18.0.17" in found) is there, name


def test_libpq_finds_the_ready_ones_and_the_primary_by_itself() -> None:
    placed = clustered("cluster there", *databases("ready", "joining"))
    assert cluster.service(placed)["synapse"]["host"] == "database"
    row = cluster.service(clustered("cluster there", *BOTH))["synapse"]
    assert (row["host"], row["port"]) == ("database,database-2", "5432,5432")
    assert row["target_session_attrs"] == "read-write"
    left = cluster.service(clustered("cluster there", *databases("draining", "ready")))
    assert left["synapse"]["host"] == "database-2"
    assert cluster.service(clustered("cluster to come"))["synapse"]["host"] == "database"
    without_workers = plan.Placement.recorded(MAP, {**AFTER_M4, "redis": ""})
    assert cluster.service(without_workers) == {}


def test_processes_are_not_told_who_the_databases_are_so_none_restarts() -> None:
    ways = [
        clustered("cluster to come"),
        clustered("cluster there", *databases("ready")),
        clustered("cluster there", *BOTH),
    ]
    for machine in ("synapse", "sync-1"):
        found = [
            slice_of(machine, replace(way, members=(*way.members, *members({"sync": 1}))))
            for way in ways
        ]
        for key in ("config", "service", "plugins", "libraries", "workers"):
            rows = [row["synapse"].get(key) for row in found]
            assert rows == [rows[0]] * 3, (machine, key)
        args = found[0]["synapse"]["config"]["database"]["args"]
        assert args["service"] == "synapse"
        assert not {"host", "port"} & set(args)
        files = [row["synapse"]["databases"] for row in found]
        assert files[0] != files[1] != files[2]


def test_standbys_are_read_by_kinds_of_the_table_where_the_map_says_so() -> None:
    kinds = members({"sync": 1, "persister": 1, "sender": 1})
    said = [membership.declared(MAP, row.minion, clustered=True) for row in kinds]
    rows = [replace(row, reads=bool(how and how.reads))
            for row, how in zip(kinds, said, strict=True)]
    placed = clustered("cluster there", *BOTH, *rows)

    def reads(machine: str, cmap: Any = MAP) -> bool:
        found = slice_of(machine, placed, cmap)["synapse"]
        names = [row["module"] for row in found["config"].get("modules", [])]
        there = "synapse_standby_reads.StandbyReads" in names
        assert there is bool(found.get("libraries"))
        return there

    assert [reads(name) for name in ("sync-1", "persister-1", "sender-1", "synapse")] == [
        True, False, False, False,
    ]  # fmt: skip
    # As it came, until reconcile has taken it out and in again.
    off = {**MAP, "database": {**MAP["database"], "standby_reads": False}}
    assert reads("sync-1", off)
    assert cluster.standbys(off, placed) == []
    assert [row["host"] for row in cluster.standbys(MAP, placed)] == ["database", "database-2"]


def test_the_first_is_made_by_m3_and_the_others_come_by_themselves() -> None:
    assert clustermap.the_machine(MAP, "database") == "database"
    assert membership.named(MAP) == ["database-2"]
    assert membership.declared(MAP, "database-2") == membership.Declared(
        "database", "198.18.0.17"
    )


def said(change: dict[str, Any], drop: tuple[str, ...] = ()) -> str:
    machines = {name: row for name, row in MAP["machines"].items() if name not in drop}
    cmap = {**MAP, "machines": machines, **change}
    return "\n".join(map(str, clustermap.problems(cmap, {})))


def test_a_map_that_cannot_be_meant_is_refused() -> None:
    assert said({}) == ""
    assert "write which one M3 moves the database to" in said({"database": {"durability": "sync"}})
    assert "'db-9' is no machine with the role database" in said(
        {"database": {"first": "db-9", "durability": "sync"}}
    )
    assert "leave it with 1, 3 or 5" in said({}, drop=("dcs-3",))
    assert "what a failover may lose" in said({"database": {"first": "database"}})
    strict = {"database": {"first": "database", "durability": "sync-strict"}}
    assert "takes no write without a standby" in said(strict, drop=("database-2",))
    assert said(strict) == ""
    wrong = {**MAP, "database": {"durability": "always"}}
    assert "async, sync or sync-strict" in "\n".join(map(str, clustermap.problems(wrong, SCHEMA)))


ASKED: dict[str, Any] = {
    "primary": {"condition": "ready", "recovery": False},
    "api": {"listeners": []},
    "dcs dcs-1": {"listeners": []},
    "dcs dcs-2": {"listeners": []},
    "dcs dcs-3": {"listeners": []},
}


def test_all_that_speaks_against_the_cluster_is_said_at_once() -> None:
    placed = clustered("cluster to come")
    assert set(cluster.questions(MAP, placed)) == set(ASKED)
    assert cluster.problems(MAP, placed, ASKED) == []
    squatter = {"port": 8008, "unit": "x.service", "program": "x"}
    told = {
        **ASKED,
        "primary": {"condition": "ready", "recovery": True},
        "api": {"listeners": [squatter]},
        "dcs dcs-2": {"error": "no answer"},
    }
    kept = replace(placed, given_up=())
    text = "\n".join(map(str, cluster.problems(MAP, kept, told)))
    for words in (
        "database: port 8008 is held by x.service", "dcs-2: no answer",
        "is no primary that serves", "orch.m3.database.finalize",
    ):  # fmt: skip
        assert words in text
    begun = replace(placed, upcoming={"redis": ""})
    assert "about to move" in str(cluster.problems(MAP, begun, ASKED))


def status(leader: str = "database", **states: str) -> dict[str, Any]:
    rows = {"database": "running", "database-2": "running", **states}
    return {"leader": leader, "members": {name: {"state": state} for name, state in rows.items()}}


def sessions(*clients: tuple[str, bool]) -> dict[str, Any]:
    return {"sessions": [{"client": client, "ssl": ssl} for client, ssl in clients]}


TOLD: dict[str, Any] = {
    **{f"dcs dcs-{number}": {"healthy": True, "leader": "dcs-3"} for number in (1, 2, 3)},
    "database": status(),
    "database-2": status(),
    "sessions database": sessions(("198.18.0.12", True)),
    "sessions database-2": sessions(),
}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ""),
        ({"dcs dcs-1": {"error": "no answer"}}, "etcd"),
        ({"dcs dcs-1": {"healthy": True, "leader": "dcs-1"}}, "etcd"),
        ({"database-2": {"error": "no answer"}}, "database cluster"),
        ({"database-2": status(leader="database-2")}, "database cluster"),
        ({"database": status(leader=""), "database-2": status(leader="")}, "database cluster"),
        ({"database": status(**{"database-2": "starting"})}, "database cluster"),
        ({"database": {**status(), "pause": True}}, "database cluster"),
        ({"sessions database": sessions(("198.18.0.12", False))}, "new database"),
        ({"sessions database": sessions(("198.18.0.99", True))}, "new database"),
    ],
)
def test_the_verdict(change: dict[str, Any], failed: str) -> None:
    placed = clustered("cluster there", *BOTH)
    assert set(cluster.proofs(MAP, placed)) == set(TOLD)
    checks = cluster.checks(MAP, placed, {**TOLD, **change})
    assert [row.check for row in checks if not row.ok] == ([failed] if failed else [])


def test_a_watcher_is_shown_in_a_word() -> None:
    rows: list[dict[str, Any]] = [
        {"healthy": True, "leader": "a"}, {"healthy": True, "leader": "b"}, {"healthy": False},
    ]  # fmt: skip
    assert [cluster.watcher("a", row) for row in rows] == ["leads", "follows", "knows no leader"]
    assert cluster.watcher("a", {"error": "no answer"}) == "no answer"


def test_it_goes_back_when_the_others_have_left() -> None:
    placed = clustered("cluster there", *BOTH)
    assert "worker.drain database-2" in str(cluster.return_problems(placed)[0])
    alone = clustered("cluster there", *databases("ready", "gone"))
    assert cluster.return_problems(alone) == []
    # And until then Synapse keeps what M4.workers told it.
    wrong = parts.return_problems("m4.workers", MAP, placed)
    assert "orch.m4.database.rollback" in str(wrong)


def test_it_is_a_milestone() -> None:
    name = cluster.MILESTONE
    assert milestone.after(name) == ("m4.workers",)
    assert name in precheck_facts.NEEDS
    assert name in verify.PROOFS
    assert parts.asking(name) is cluster
    achieved = {name: {"state": "achieved"}}
    assert milestone.return_problems(achieved, name) == []
    assert milestone.return_problems({name: {"state": "achieved", "finalized": 1}}, name)
    assert set(DATABASE_WAYS) == {"cluster to come", "cluster watched", "cluster there"}
