"""The worker table, and the workers that the plan makes of it: names, writers, pools, files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from saltworks import clustermap, plan, routing, slices, worker_table, workers
from saltworks.errors import Problem, Refused
from saltworks.parts import media
from saltworks.registry import Member, State

from tests import cluster
from tests.lab.driver import PROJECT
from tests.render.stages import M3_PLACEMENTS, MAP, PLACEMENTS
from tests.unit.test_slices import secrets_in

TABLE = worker_table.table()
SCHEMA = clustermap.schema(PROJECT / "pillar/schema/cluster.schema.json")


def secret(name: str) -> str:
    return f"<{name}>"


def plan_of(*rows: Member) -> workers.Workers:
    return workers.of(cluster.placement(*rows))


def data() -> dict[str, Any]:
    loaded = yaml.safe_load(worker_table.PATH.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda d: d["kinds"]["sync"].update(endpoint=[]), "unknown key endpoint"),
    "no balance": (lambda d: d["kinds"]["sync"].pop("balance"), "endpoints and no balance"),
    "balance": (lambda d: d["kinds"]["sync"].update(balance="luck"), "balance is 'luck'"),
    "holders": (lambda d: d["streams"]["typing"].update(holders="two"), "holders is 'two'"),
    "writer": (lambda d: d["streams"]["typing"].update(writer="nobody"), "'nobody' is no kind"),
    "stream restarts": (lambda d: d["streams"]["typing"].update(restarts="none"), "must know who"),
    "method": (lambda d: d["kinds"]["sync"]["endpoints"].append("GRAB /x"), "unknown methods"),
    "prefix": (lambda d: d["kinds"]["sync"]["endpoints"].append("GET <x>y"), "unknown prefixes"),
    "pattern": (lambda d: d["kinds"]["sync"]["endpoints"].append("GET /x("), "endpoint 'GET /x('"),
    "path": (lambda d: d["kinds"]["sync"]["endpoints"].append("GET x"), "does not begin with /"),
    "loop": (lambda d: d["kinds"]["client"].update(fallback="sync"), "does not lead to main"),
    "resources": (lambda d: d["kinds"]["sync"].update(resources=["x"]), "unknown resources"),
    "duty": (lambda d: d["kinds"]["background"].pop("duty"), "holders and no duty"),
    "restarts": (lambda d: d["kinds"]["pusher"].update(restarts="none"), "it is duty"),
    "standby reads": (lambda d: d["kinds"]["writer"].update(standby_reads=True), "writes, and has"),
    "fallback": (lambda d: d["kinds"]["media"].update(fallback="client"), "does not serve"),
    "parts": (lambda d: d.pop("streams"), "has not the parts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_is_wrong_is_refused_and_says_where(name: str) -> None:
    spoil, said = WRONG[name]
    table = copy.deepcopy(data())
    spoil(table)
    with pytest.raises(Refused, match="worker table refused") as caught:
        worker_table.load(table)
    assert said in str(caught.value)


def test_every_problem_of_a_table_is_told_at_once() -> None:
    table = data()
    table["kinds"]["sync"]["balance"] = "luck"
    table["streams"]["typing"]["writer"] = "nobody"
    assert len(list(worker_table.problems(table))) >= 2


def test_names_and_ports_of_processes_depend_on_their_machine_alone() -> None:
    one = replace(cluster.member("sync-7", "sync", 7), processes=3)
    alone = plan_of(one)
    among = plan_of(*cluster.members({"sync": 5, "client": 3}), one)
    assert list(alone.processes) == ["sync-7-1", "sync-7-2", "sync-7-3"]
    for name, row in alone.processes.items():
        assert among.processes[name] == row
    assert [row.port for row in alone.of("sync-7")] == [8101, 8102, 8103]


@pytest.mark.parametrize(("state", "there", "routed"), [
    ("joining", True, False), ("ready", True, True), ("draining", True, False),
    ("gone", False, False),
])
def test_only_who_is_ready_has_duties_and_requests(
    state: Any, there: bool, routed: bool
) -> None:
    found = plan_of(*[cluster.member(f"{k}-x", k, n, state) for n, k in enumerate(TABLE.kinds, 1)])
    assert bool(found.processes) is there
    assert bool(found.pools) is bool(found.streams) is bool(found.duties) is routed
    assert bool(routing.nginx(found)) is routed


def test_without_the_bus_there_is_no_worker() -> None:
    placed = replace(cluster.placement(*cluster.members(cluster.EACH)), redis="")
    found = workers.of(placed)
    assert (found.processes, found.pools, found.streams) == ({}, {}, {})


def test_streams_have_as_many_writers_as_synapse_allows() -> None:
    found = plan_of(*cluster.members({"writer": 3, "persister": 2, "media": 2}))
    sizes = {name: len(names) for name, names in found.streams.items()}
    assert sizes == {
        "events": 2, "typing": 1, "to_device": 1, "receipts": 3, "push_rules": 1,
        "account_data": 1, "presence": 1, "device_lists": 3, "quarantined_media_changes": 1,
    }
    spread = {name for stream in ("typing", "to_device", "push_rules", "account_data", "presence")
              for name in found.streams[stream]}
    assert len(spread) > 1


def test_a_lost_writer_s_streams_move_and_the_others_stay() -> None:
    rows = cluster.members({"writer": 3})
    before = plan_of(*rows)
    after = plan_of(*(row for row in rows if row.minion != "writer-2"))
    for stream, names in before.streams.items():
        if len(names) == 1 and names != ("writer-2-1",):
            assert after.streams[stream] == names
    assert not any("writer-2-1" in names for names in after.streams.values())


def test_strict_streams_are_served_by_their_writers_alone() -> None:
    """Main answers 500 when it is not the writer, so there is no other way than to it."""
    for counts in (cluster.EACH, {"sync": 1}, {"writer": 2}):
        found = plan_of(*cluster.members(counts))
        for name in ("typing", "to_device", "receipts", "push_rules"):
            assert TABLE.groups[name].strict
            if name in found.streams:
                assert found.routes[name] == name
                assert {row.name for row in found.pools[name]} == set(found.streams[name])
            else:
                assert found.routes[name] == "main"


def test_what_has_no_process_of_its_own_falls_back_along_the_table() -> None:
    assert plan_of(*cluster.members({"client": 1})).routes["initial-sync"] == "client"
    assert plan_of(*cluster.members({"sync": 1})).routes["initial-sync"] == "sync"
    assert plan_of(*cluster.members({"sync": 1})).routes["sender"] == "main"
    assert plan_of(*cluster.members({"client": 1})).routes["media"] == "main"


def test_a_generic_worker_shows_in_nobody_else_s_files() -> None:
    rows = cluster.members({"sync": 1, "writer": 1})
    more = (*rows, cluster.member("client-9", "client", 99))
    cmap = cluster.WORKER_MAP
    for machine in ("synapse", "sync-1", "writer-1", "redis", "database", "storage", "directory"):
        before, after = (
            slices.slice_for(cmap, cluster.placement(*some), machine, secret)
            for some in (rows, more)
        )
        assert before == after, machine


def test_a_machine_of_workers_holds_no_secret_that_it_does_not_need() -> None:
    placed = cluster.placement(*cluster.members(cluster.EACH))

    def of(machine: str) -> set[str]:
        return secrets_in(slices.slice_for(cluster.WORKER_MAP, placed, machine, secret))

    every = {
        "signing_key", "macaroon_secret_key", "database_password", "redis_password",
        "worker_replication_secret", "pki_authority",
    }
    for kind in TABLE.kinds:
        store = {"media_access_key", "media_secret_key"} if kind == "media" else set()
        assert of(f"{kind}-1") == every | store, kind
    assert of("redis") == {"redis_password", "pki_authority", "pki_redis", "pki_redis_key"}
    assert of("proxy") == {"tls_certificate", "tls_key"}


def test_what_belongs_to_synapse_s_account_comes_after_it() -> None:
    placed = cluster.placement(*cluster.members(cluster.EACH))
    for kind in TABLE.kinds:
        found = slices.slice_for(cluster.WORKER_MAP, placed, f"{kind}-1", secret)
        beside = ["synapse.installed", "media"] if kind == "media" else []
        assert found["saltworks"]["states"] == ["base", "firewall", *beside, "synapse"], kind


def test_who_could_make_himself_an_administrator_is_main_alone() -> None:
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["synapse"]["settings"]["registration_shared_secret"] = {"secret": "registration"}
    placed = cluster.placement(*cluster.members({"sync": 1}))
    assert "registration" in secrets_in(slices.slice_for(cmap, placed, "synapse", secret))
    assert "registration" not in secrets_in(slices.slice_for(cmap, placed, "sync-1", secret))


def test_while_something_moves_no_state_run_restarts_a_worker() -> None:
    placed = cluster.placement(*cluster.members(cluster.EACH))
    for change in ({"moving": True}, {"upcoming": {"media": ""}}):
        for kind in TABLE.kinds:
            found = slices.slice_for(
                cluster.WORKER_MAP, replace(placed, **change), f"{kind}-1", secret
            )
            assert found["saltworks"]["states"][-1] == "synapse.prepared"


def test_a_machine_that_serves_media_has_the_bounded_cache_and_sends_nothing() -> None:
    cmap = {**cluster.WORKER_MAP, "media": {"cache_bytes": 5, "cache_days": 2}}
    placed = cluster.placement(*cluster.members(cluster.EACH))
    every = {
        name: slices.slice_for(cmap, placed, name, secret)
        for name in ("synapse", *(f"{kind}-1" for kind in TABLE.kinds))
    }
    found = {name: row["media"] for name, row in every.items() if "media" in row}
    assert list(found) == ["synapse", "media-1"]
    assert found["media-1"]["cache"] == {
        "keep_bytes": 5, "keep_seconds": 2 * 86400, "idle_seconds": 3600,
    }
    assert (found["media-1"]["prune"], found["media-1"]["counts"]) == (True, "store")
    assert found["media-1"]["sends"] is False
    # Once workers serve media they delete files that main's folder has still.
    alone = slices.slice_for(cmap, cluster.placement(), "synapse", secret)["media"]
    assert (alone["sends"], found["synapse"]["sends"]) == (True, False)
    on_the_way = replace(placed, upcoming={"media": ""})
    assert not slices.slice_for(cmap, on_the_way, "media-1", secret)["media"]["prune"]


def test_the_caches_are_those_of_main_and_of_who_serves_media_until_he_is_gone() -> None:
    states: tuple[State, ...] = ("ready", "joining", "draining", "gone")
    rows = [
        cluster.member(f"media-{number}", "media", number, state)
        for number, state in enumerate(states, 1)
    ]
    placed = cluster.placement(*rows, cluster.member("sync-1", "sync", 9))
    assert media.caches(placed) == ["synapse", "media-1", "media-2", "media-3"]
    assert media.caches(replace(placed, media="")) == []


@pytest.mark.parametrize(
    "uri",
    [
        "/_matrix/client/v1/media/preview_url?url=https%3A%2F%2Fa.example",
        "/_matrix/media/v3/preview_url?url=https%3A%2F%2Fb.example",
        "/_matrix/client/v1/media/download/lale.test/2026-11-28_aBcD",
        "/_matrix/media/r0/thumbnail/lale.test/2026-11-28_aBcD?width=9&height=9",
    ],
)
def test_a_preview_and_its_picture_are_where_the_job_clears_them_away(uri: str) -> None:
    """They are on the machine that made them alone, and in no store."""
    found = plan_of(*cluster.members({"media": 4}))
    (name,) = found.duties["media"]
    asked = routing.route(routing.Request("GET", uri), found)
    assert asked.servers == (found.processes[name],)
    other = routing.Request("GET", "/_matrix/client/v1/media/download/lale.test/aBcDeFgH")
    assert len(routing.route(other, found).servers) == 4


@pytest.mark.parametrize("state", ["gone", None])
def test_a_machine_that_is_not_a_member_gets_nothing(state: Any) -> None:
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["machines"]["sync-1"] = {"role": "worker", "kind": "sync", "address": "198.19.0.1"}
    rows = [cluster.member("sync-1", "sync", 1, state)] if state else []
    found = slices.slice_for(cmap, cluster.placement(*rows), "sync-1", secret)
    assert secrets_in(found) == set()
    assert found["saltworks"]["states"] == [
        "base", "synapse.absent", "media.absent", "firewall.absent"
    ]
    assert slices.slice_for(cmap, cluster.placement(), "nobody", secret) == {}


def test_who_may_connect_to_what_workers_ask_is_declared_not_registered() -> None:
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["machines"]["sync-1"] = {"role": "worker", "kind": "sync", "address": "198.19.0.1"}
    placed = cluster.placement(*cluster.members({"sync": 1, "writer": 1}))
    wanted = ["198.18.0.12", "198.19.0.1", cluster.NETWORK]

    def ports(machine: str) -> dict[int, list[str]]:
        rules: dict[int, list[str]] = slices.slice_for(cmap, placed, machine, secret)["firewall"][
            "ports"
        ]
        return rules

    assert ports("redis") == {6379: wanted}
    assert ports("database")[5432][:3] == wanted
    assert ports("storage") == {9000: wanted}
    assert ports("directory")[636] == wanted
    assert ports("synapse") == {
        8008: ["198.18.0.11"], 8009: ["198.18.0.11"], 9093: wanted[1:],
    }
    assert ports("writer-1") == {8101: ["198.18.0.11"], 9101: wanted}
    assert ports("sync-1") == {8101: ["198.18.0.11"]}
    admits = slices.slice_for(cmap, placed, "database", secret)["postgres"]["admits"]
    assert [row["address"] for row in admits[:3]] == [
        "198.18.0.12/32", "198.19.0.1/32", cluster.NETWORK,
    ]


@pytest.mark.parametrize("stage", [*PLACEMENTS, *M3_PLACEMENTS])
@pytest.mark.parametrize("machine", sorted(MAP["machines"]))
def test_until_m4_begins_a_map_with_workers_changes_nothing(stage: str, machine: str) -> None:
    row = {**PLACEMENTS, **M3_PLACEMENTS}[stage]
    placed = plan.Placement.recorded(MAP, row)
    members = cluster.members(cluster.EACH)
    plain = slices.slice_for(MAP, placed, machine, secret)
    rich = slices.slice_for(cluster.WORKER_MAP, replace(placed, members=members), machine, secret)
    assert rich["base"]["hosts"].pop("redis") == "198.18.0.16"
    assert rich == plain


def valid(change: Callable[[dict[str, Any]], Any]) -> list[Problem]:
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["legacy"]["database"] = {"engine": "psycopg2"}
    change(cmap)
    return clustermap.problems(cmap, SCHEMA)


@pytest.mark.parametrize(("change", "said"), [
    (lambda m: m["workers"].update({"no-such": {}}), "'no-such' is no kind of worker"),
    (lambda m: m["workers"]["sync"].update(processes=65), "65 is greater than"),
    (lambda m: m["workers"]["sync"].update(pool="*"), "does not match"),
    (lambda m: m["workers"]["sync"].update(count=3), "Additional properties"),
    (lambda m: m["worker_networks"].append("198.19.0.1/16"), "has host bits set"),
    (lambda m: m["machines"].update(a={"role": "worker", "address": "198.19.0.1"}), "'kind'"),
    (lambda m: m["machines"].pop("redis"), "no machine has the role redis"),
    (
        lambda m: m["machines"].update(b={"role": "redis", "address": "198.18.0.17"}),
        "role redis is given to 2 machines",
    ),
])
def test_a_map_that_is_wrong_about_workers_is_refused(
    change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    assert valid(lambda m: None) == []
    assert any(said in str(problem) for problem in valid(change)), valid(change)




def test_a_limit_is_one_that_nginx_can_count() -> None:
    found = routing.nginx(plan_of(*cluster.members({"sync": 50, "initial-sync": 2})))
    assert found["ways"]["sync"]["limit"] == 65535
    assert found["ways"]["initial-sync"]["limit"] == 100
