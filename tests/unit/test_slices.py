"""Each machine's slice at every stage of the way, and what the plan says of the move."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from saltworks import milestone, moves, parts, plan, slices, synapse_config
from saltworks.errors import Problem, Refused

from tests.render.stages import M3_PLACEMENTS, MAP, PLACEMENTS, SQLITE

ON_SQLITE: dict[str, Any] = {**MAP, "synapse": {**MAP["synapse"], "database": SQLITE}}
ALONE: dict[str, Any] = {
    **MAP, "machines": {name: MAP["machines"][name] for name in ("salt", "legacy")},
}
#: States that start or stop Synapse, and those that may open the door.
SYNAPSE_RUNS = {"synapse", "synapse.running", "synapse.absent"}
DOOR_OPENS = {"nginx", "nginx.running", "nginx.door", "nginx.absent"}

STATES: dict[str, dict[str, list[str]]] = {
    "as found": {
        "legacy": ["base"],
        "proxy": ["base", "nginx"],
        "synapse": ["base", "firewall", "media.absent", "synapse", "transfer"],
    },
    "after M1": {
        "legacy": ["base", "relay", "nginx", "synapse", "transfer"],
        "proxy": ["base", "nginx"],
        "synapse": ["base", "firewall", "media.absent", "synapse", "transfer"],
    },
    "front moved": {
        "legacy": ["base", "relay", "nginx", "synapse", "transfer"],
        "proxy": ["base", "nginx"],
        "synapse": ["base", "firewall", "media.absent", "synapse", "transfer"],
    },
    "moving": {
        "legacy": ["base", "relay", "nginx", "synapse.prepared", "transfer"],
        "proxy": ["base", "nginx.loaded"],
        "synapse": ["base", "firewall", "media.absent", "synapse.prepared", "transfer"],
    },
    "after M2": {
        "legacy": ["base", "relay", "nginx", "synapse.absent", "postgres.source", "transfer"],
        "proxy": ["base", "nginx"],
        "synapse": ["base", "firewall", "media.absent", "synapse", "transfer"],
    },
    "retired": {
        "legacy": [
            "base", "relay", "nginx.absent", "synapse.absent", "postgres.source", "transfer.absent",
        ],
        "proxy": ["base", "nginx"],
        "synapse": ["base", "firewall", "media.absent", "synapse", "transfer.absent"],
    },
}


AS_FOUND = plan.Placement.recorded(MAP, {})


def placement(stage: str) -> plan.Placement:
    return plan.Placement.recorded(MAP, PLACEMENTS[stage])


def before_m3(name: str) -> str:
    """A vault in which no part of M3 has made its secrets."""
    if name.startswith(("pki_", "transfer_directory")):
        raise Refused("secrets", [Problem("pillar/secrets.sls", f"{name} is missing", "put it")])
    return f"<{name}>"


def slice_of(machine: str, stage: str, cmap: dict[str, Any] | None = None) -> dict[str, Any]:
    return slices.slice_for(
        cmap or MAP, placement(stage), machine, before_m3,
        artifact={"source": "salt://r", "source_hash": "sha256=0"},
        host_keys={"legacy": "198.18.0.10 ssh-ed25519 AAAA"},
    )


@pytest.mark.parametrize("stage", PLACEMENTS)
def test_what_each_machine_runs_follows_the_placement(stage: str) -> None:
    found = {name: slice_of(name, stage)["saltworks"]["states"] for name in STATES[stage]}
    assert found == STATES[stage]
    assert slice_of("salt", stage)["saltworks"]["states"] == ["base"]


@pytest.mark.parametrize("stage", PLACEMENTS)
def test_synapse_is_never_to_run_on_two_machines(stage: str) -> None:
    running = [
        name for name in ("legacy", "synapse")
        if "synapse" in slice_of(name, stage)["saltworks"]["states"]
        and slice_of(name, stage)["synapse"]["service"]["running"]
    ]
    wanted = {"as found": [], "moving": [], "after M2": ["synapse"], "retired": ["synapse"]}
    assert running == wanted.get(stage, ["legacy"])


@pytest.mark.parametrize("cmap", [MAP, ON_SQLITE], ids=["postgresql", "sqlite"])
def test_while_synapse_moves_no_state_run_touches_it_or_the_door_that_is_held(
    cmap: dict[str, Any],
) -> None:
    for machine in MAP["machines"]:
        states = set(slice_of(machine, "moving", cmap)["saltworks"]["states"])
        assert not states & SYNAPSE_RUNS
        # The old machine's door only passes on to the proxy's, where the requests are held.
        if machine != "legacy":
            assert not states & DOOR_OPENS


def secrets_in(value: Any) -> set[str]:
    return set(re.findall(r"<(\w+)>", str(value)))


@pytest.mark.parametrize("stage", PLACEMENTS)
@pytest.mark.parametrize("cmap", [MAP, ON_SQLITE], ids=["postgresql", "sqlite"])
def test_a_machine_holds_no_other_s_secrets(cmap: dict[str, Any], stage: str) -> None:
    certificate = {"tls_certificate", "tls_key"}
    server = {"signing_key", "macaroon_secret_key"}
    if cmap is MAP:
        server |= {"database_password"}
    names = plan.transfers(cmap)
    offers, pulls = ({f"transfer_{name}_{end}" for name in names} for end in ("public", "private"))
    there = PLACEMENTS[stage].get("synapse") == "synapse"
    assert secrets_in(slice_of("salt", stage, cmap)) == set()
    assert secrets_in(slice_of("proxy", stage, cmap)) == certificate
    assert secrets_in(slice_of("synapse", stage, cmap)) == server | (set() if there else pulls)
    wanted = certificate | (set() if stage == "retired" else offers)
    assert secrets_in(slice_of("legacy", stage, cmap)) == wanted | (set() if there else server)


def test_nothing_is_fetched_again_once_people_write_at_the_new_place() -> None:
    """A second run of M2 would otherwise delete the media uploaded since."""
    for stage, fetched in (("front moved", True), ("moving", True), ("after M2", False)):
        assert bool(slice_of("synapse", stage, ON_SQLITE)["transfer"]["pulls"]) is fetched


def test_the_release_and_the_host_key_reach_those_that_need_them() -> None:
    assert slice_of("legacy", "after M1")["synapse"]["release"]["source"] == "salt://r"
    assert slice_of("synapse", "after M1")["transfer"]["host_key"].startswith("198.18.0.10 ")
    assert "host_key" not in slice_of("legacy", "after M1")["transfer"]


def test_the_old_machine_offers_its_trees_only_where_somebody_may_fetch_them() -> None:
    offers = slice_of("legacy", "after M1", ON_SQLITE)["transfer"]["offers"]
    assert {name: row["from"] for name, row in offers.items()} == {
        "media": ["198.18.0.12"], "database": ["198.18.0.12"],
    }
    assert slice_of("legacy", "retired", ON_SQLITE)["transfer"]["offers"] == {}
    assert slice_of("legacy", "after M1", ALONE)["transfer"]["offers"] == {}


@pytest.mark.parametrize(("port", "wanted"), [(None, 5432), (5433, 5433)])
def test_the_database_has_one_port_wherever_it_is_named(port: int | None, wanted: int) -> None:
    cmap = copy.deepcopy(MAP)
    cmap["synapse"]["database"] |= {"port": port} if port else {}
    legacy = slice_of("legacy", "after M1", cmap)
    assert legacy["legacy"]["backup"]["cluster"] == {"port": wanted}
    assert legacy["synapse"]["config"]["database"]["args"]["port"] == wanted
    assert legacy["relay"]["postgresql"]["target"] == f"127.0.0.1:{wanted}"


@pytest.mark.parametrize("stage", PLACEMENTS)
def test_synapse_on_its_own_machine_is_open_to_the_proxy_alone(stage: str) -> None:
    row = slice_of("synapse", stage)
    assert row["firewall"]["ports"] == {8008: ["198.18.0.11"], 8009: ["198.18.0.11"]}
    states = row["saltworks"]["states"]
    assert states.index("firewall") < next(
        at for at, name in enumerate(states) if name.startswith("synapse")
    )
    for machine in ("salt", "legacy", "proxy"):
        assert "firewall" not in slice_of(machine, stage)
    machines = {name: row for name, row in MAP["machines"].items() if name != "proxy"}
    alone = slice_of("synapse", stage, {**MAP, "machines": machines})
    assert set(map(tuple, alone["firewall"]["ports"].values())) == {()}


def test_the_old_site_passes_on_to_the_machine_that_took_the_front() -> None:
    before = slice_of("legacy", "after M1")["nginx"]["site"]
    assert (before["kind"], "relay_to" in before) == ("synapse", False)
    after = slice_of("legacy", "front moved")["nginx"]["site"]
    assert after["kind"] == "relay"
    assert after["relay_to"] == {"address": "198.18.0.11", "port": 443, "name": "chat.lale.test"}
    assert slice_of("proxy", "front moved")["nginx"]["site"]["real_ip_from"] == ["198.18.0.10"]


def test_orchestrations_know_the_roles_and_no_secret() -> None:
    empty = slices.for_orchestrations(None, None, {})["saltworks"]
    assert set(empty["machines"].values()) == {""}
    assert not any(empty["achieved"].values())
    assert empty["front"] == ""
    record = {"m1": {"state": "achieved"}, "m2": {"state": "running"}}
    known = slices.for_orchestrations(ALONE, placement("front moved"), record)["saltworks"]
    declared = {role: name for role, name in known["machines"].items() if name}
    assert declared == {"legacy": "legacy", "master": "salt"}
    assert [name for name, done in known["achieved"].items() if done] == ["m1"]
    assert known["front"] == "proxy"


def test_each_part_is_a_milestone_with_a_title_and_its_place_is_recorded() -> None:
    known = slices.for_orchestrations(MAP, AS_FOUND, {})["saltworks"]
    names = [row["milestone"] for row in known["parts"].values()]
    assert [name for name in milestone.AFTER if "." in name] == [*names, "m4.database"]
    assert [f"m3.{name}" for name in known["m3"]] == milestone.parts_of("m3") == names[:-1]
    assert set(milestone.TITLES) == {*milestone.AFTER, "m3"}
    for name in parts.PARTS:
        assert parts.moved(AS_FOUND) == []
        moved = plan.Placement.recorded(MAP, {name: "there"})
        assert parts.moved(moved) == [parts.PARTS[name]]


def test_the_configuration_before_a_window_is_kept_as_long_as_the_window() -> None:
    def kept(stage: str) -> bool:
        placed = plan.Placement.recorded(MAP, M3_PLACEMENTS[stage])
        row = slices.slice_for(MAP, placed, "synapse", lambda name: name)["synapse"]
        return bool(row.get("keep_previous"))

    stages = ("database upcoming", "database moving", "database moved", "auth going back")
    assert [kept(stage) for stage in stages] == [False, True, False, False]


def test_the_move_leaves_and_arrives_with_what_the_formulas_prepared() -> None:
    move = moves.of_synapse(MAP)
    assert (move.front, move.old.machine, move.new.machine) == ("proxy", "legacy", "synapse")
    door = slice_of("proxy", "moving")["nginx"]["door"]["targets"]
    assert {move.old.target, move.new.target} == {"legacy", "synapse"} <= set(door)
    assert (move.service, move.ports, move.leave) == ("synapse", (plan.PORT,), {})
    assert move.new.url == "http://198.18.0.12:8008"
    (pull,) = move.arrive["pulls"]
    there = slice_of("synapse", "moving")["transfer"]
    assert there["pulls"]["media"]["destination"] == pull["destination"]
    assert there["from"] == pull["host"]
    assert pull["key"] == "/etc/saltworks/transfer/media.key"


def test_a_sqlite_file_is_copied_where_it_is_fetched_from_and_put_where_it_is_looked_for() -> None:
    move = moves.of_synapse(ON_SQLITE)
    pull = next(row for row in move.arrive["pulls"] if row["source"] == plan.HANDOVER_DIR)
    assert move.leave["sqlite"] == {"source": SQLITE["path"], "directory": pull["source"]}
    assert move.arrive["sqlite"]["directory"] == pull["destination"]
    config = synapse_config.homeserver_config(ON_SQLITE, AS_FOUND, "synapse", lambda name: name)
    assert move.arrive["sqlite"]["destination"] == config["database"]["args"]["database"]


def test_there_is_no_move_without_machines_to_move_to() -> None:
    with pytest.raises(KeyError, match="proxy"):
        moves.of_synapse(ALONE)


def test_ipv6_has_brackets_where_urls_and_sockets_want_them_and_nowhere_else() -> None:
    cmap = copy.deepcopy(MAP)
    cmap["machines"]["legacy"]["address"] = "2001:db8::10"
    cmap["machines"]["synapse"]["address"] = "2001:db8::12"
    cmap["legacy"]["listener"]["address"] = "::1"
    cmap["synapse"]["loopback"][0]["host"] = "::1"
    relay = plan.relays(cmap, placement("after M1"))["loopback-389"]
    assert relay["listen"] == "[2001:db8::10]:10389"
    # See tests/process/test_relay_target.py.
    assert relay["target"] == "::1:389"
    assert plan.relays(cmap, placement("as found"))["synapse-found"]["target"] == "::1:8008"
    config = synapse_config.homeserver_config(cmap, AS_FOUND, "synapse", lambda name: name)
    assert config["modules"][0]["config"]["uri"] == "ldap://[2001:db8::10]:10389"
    assert config["database"]["args"]["host"] == "2001:db8::10"
    assert moves.of_synapse(cmap).new.url == "http://[2001:db8::12]:8008"
    assert slice_of("legacy", "as found", cmap)["legacy"]["found_url"] == "http://[::1]:8008"
