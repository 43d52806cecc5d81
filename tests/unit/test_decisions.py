"""The cluster map's checks, the plan, the milestone record and the runners' refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from saltworks import clustermap, milestone, plan, slices, synapse_config
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing

SCHEMA = clustermap.schema(Path(__file__).parents[2] / "pillar" / "schema" / "cluster.schema.json")

MAP: dict[str, Any] = {
    "name": "lale",
    "server_name": "lale.test",
    "public": {"name": "chat.lale.test", "ports": [443]},
    "releases": {"synapse": "1.163.2"},
    "machines": {
        "legacy": {"role": "legacy", "address": "198.18.0.10"},
        "proxy": {"role": "proxy", "address": "198.18.0.11"},
        "synapse": {"role": "synapse", "address": "198.18.0.12"},
    },
    "legacy": {
        "minion": "legacy",
        "unit": "matrix-synapse.service",
        "user": "matrix",
        "group": "matrix",
        "config_path": "/home/matrix/homeserver.yaml",
        "listener": {"address": "127.0.0.1", "port": 8008},
        "media_store_path": "/home/matrix/media_store",
        "nginx_sites": ["/etc/nginx/sites-enabled/matrix"],
        "database": {"engine": "psycopg2"},
    },
    "synapse": {
        "settings": {"macaroon_secret_key": {"secret": "macaroon_secret_key"}},
        "database": {"engine": "psycopg2", "name": "synapse", "user": "u", "host": "localhost"},
        "modules": [{"module": "ldap.Module", "config": {"uri": "ldap://localhost:389"}}],
        "loopback": [{"path": "modules.0.config.uri", "host": "localhost", "port": 389}],
    },
    "build": {},
    "backup": {"directory": "/var/backups/saltworks"},
}


AS_FOUND = plan.Placement.recorded(MAP, {})


def secret(name: str) -> str:
    return f"<{name}>"


def placement(**row: Any) -> plan.Placement:
    return plan.Placement.recorded(MAP, row)


def test_a_good_map_has_no_problem_and_a_bad_one_has_all_of_its_at_once() -> None:
    assert clustermap.problems(MAP, SCHEMA) == []
    bad = copy.deepcopy(MAP)
    bad["machines"]["second"] = {"role": "synapse", "address": "198.18.0.12"}
    said = clustermap.problems(bad, SCHEMA, minions=["legacy", "proxy", "synapse"], secrets=[])
    text = "\n".join(map(str, said))
    assert "role synapse is given to 2 machines" in text
    assert "is second's address too" in text
    assert "no accepted minion has the id second" in text
    assert "the secret macaroon_secret_key is missing" in text


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"machnes": {}}, "cluster:"),
        ({"server_name": 3}, "cluster.server_name"),
        ({"releases": {"synapse": "latest"}}, "cluster.releases.synapse"),
        ({"machines": {"a b": {"role": "legacy", "address": "x"}}}, "cluster.machines"),
        # It stands in statements that the superuser runs, also on the new machine.
        (
            {"synapse": {**MAP["synapse"], "database": {"engine": "psycopg2", "name": 's";'}}},
            "cluster.synapse.database.name",
        ),
    ],
)
def test_shape_errors_name_their_place(change: dict[str, Any], place: str) -> None:
    said = clustermap.problems({**MAP, **change}, SCHEMA)
    assert any(str(row).startswith(place) for row in said), said


def test_how_long_clients_are_told_is_the_operators_word() -> None:
    assert plan.announce_seconds(MAP) == 31
    assert plan.announce_seconds({**MAP, "front_door": {"announce_seconds": 3}}) == 3


def test_at_home_the_database_and_modules_are_reached_as_found() -> None:
    config = synapse_config.homeserver_config(MAP, AS_FOUND, "legacy", secret)
    assert config["database"]["args"]["host"] == "localhost"
    assert config["modules"][0]["config"]["uri"] == "ldap://localhost:389"
    assert config["macaroon_secret_key"] == "<macaroon_secret_key>"


def test_on_its_own_machine_synapse_reaches_them_through_relays_that_exist() -> None:
    config = synapse_config.homeserver_config(MAP, AS_FOUND, "synapse", secret)
    listens = {row["listen"] for row in plan.relays(MAP, placement(managed=True)).values()}
    assert config["database"]["args"]["host"] == "198.18.0.10"
    assert config["database"]["args"]["port"] == 15432
    assert config["modules"][0]["config"]["uri"] == "ldap://198.18.0.10:10389"
    assert {"198.18.0.10:15432", "198.18.0.10:10389"} <= listens


def test_a_bare_host_is_relayed_with_the_port_beside_it() -> None:
    cmap = copy.deepcopy(MAP)
    cmap["synapse"]["settings"]["email"] = {"smtp_host": "localhost", "smtp_port": 587}
    cmap["synapse"]["modules"][0]["config"] = {
        "host": "localhost",
        "port": 8090,
        "servers": ["localhost"],
    }
    cmap["synapse"]["loopback"] = [
        {"path": "email.smtp_host", "host": "127.0.0.1", "port": 587},
        {"path": "modules.0.config.host", "host": "localhost", "port": 8090},
        {"path": "modules.0.config.servers.0", "host": "localhost", "port": 389},
    ]
    assert clustermap.problems(cmap, SCHEMA) == []
    config = synapse_config.homeserver_config(cmap, AS_FOUND, "synapse", secret)
    assert config["email"] == {"smtp_host": "198.18.0.10", "smtp_port": 10587}
    assert config["modules"][0]["config"] == {
        "host": "198.18.0.10",
        "port": 18090,
        "servers": ["198.18.0.10:10389"],
    }
    relays = plan.relays(cmap, placement(managed=True)).values()
    assert {row["listen"]: row["target"] for row in relays}.items() >= {
        "198.18.0.10:10587": "127.0.0.1:587",
        "198.18.0.10:18090": "127.0.0.1:8090",
        "198.18.0.10:10389": "127.0.0.1:389",
    }.items()
    at_home = synapse_config.homeserver_config(cmap, AS_FOUND, "legacy", secret)
    assert at_home["email"] == {"smtp_host": "localhost", "smtp_port": 587}


@pytest.mark.parametrize(
    ("host", "port"),
    [("smtp_host", "smtp_port"), ("host", "port"), ("hostname", "port"), ("server", "port")],
)
def test_the_port_of_a_host_has_a_key_beside_it(host: str, port: str) -> None:
    assert plan.port_key(host) == port


def test_each_machine_holds_only_its_own_secrets() -> None:
    proxy = str(slices.slice_for(MAP, placement(managed=True), "proxy", secret))
    assert "<tls_key>" in proxy
    for name in ("signing_key", "macaroon_secret_key", "database_password", "transfer"):
        assert f"<{name}" not in proxy
    assert slices.slice_for(MAP, placement(), "stranger", secret) == {}


def test_the_door_follows_the_placement() -> None:
    assert plan.door_target(MAP, placement(), "legacy") == "found"
    assert plan.door_target(MAP, placement(managed=True), "legacy") == "legacy"
    moved = placement(managed=True, synapse="synapse", front="proxy")
    assert plan.door_target(MAP, moved, "proxy") == "synapse"
    assert "synapse.absent" in slices.slice_for(MAP, moved, "legacy", secret)["saltworks"]["states"]


def test_milestones_keep_their_order_and_a_dead_run_is_taken_over() -> None:
    assert milestone.order_problems({}, "m1") == []
    assert "M1 is not achieved" in milestone.order_problems({}, "m2")[0].what
    row = milestone.begun({}, "m1", 10.0)
    again = milestone.begun({"m1": row}, "m1", 20.0)
    assert (again["started"], again["runs"]) == (10.0, 2)


def test_the_catch_expires() -> None:
    done = {"m1": {"state": "achieved"}}
    assert milestone.catch_problems(done, None, "m1.finalize", 100.0)
    assert not milestone.catch_problems(done, 50.0, "m1.finalize", 100.0)
    assert milestone.catch_problems(done, 30.0, "m1.finalize", 100.0)
    early = milestone.catch_problems({"m1": {"state": "running"}}, 99.0, "m1.finalize", 100.0)
    assert "M1 is not achieved" in early[0].what


def test_what_is_achieved_or_never_began_is_not_taken_back() -> None:
    assert "has not begun" in milestone.return_problems({}, "m1")[0].what
    assert milestone.return_problems({"m1": {"state": "running"}}, "m1") == []
    late = milestone.return_problems({"m1": {"state": "achieved"}}, "m1")
    assert "would lose what people have written there since" in late[0].what


def test_a_refusal_is_a_text_with_a_retcode_and_a_bug_stays_an_exception() -> None:
    def refuse() -> None:
        raise Refused("M1", [Problem("here", "is wrong", "mend it")])

    answer = refusing(refuse)()
    assert answer["retcode"] == 1
    assert answer["data"].endswith("  - here: is wrong -> mend it")
    with pytest.raises(ZeroDivisionError):
        refusing(lambda: 1 / 0)()
