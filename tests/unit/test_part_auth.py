"""M3, auth: what each machine gets at each stage, the window's steps, what the precheck says."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from saltworks import (
    clustermap,
    modules,
    parts,
    plan,
    precheck,
    slices,
    ssh_keys,
    synapse_config,
    verify,
)
from saltworks.errors import Problem, Refused
from saltworks.parts import auth
from saltworks.precheck_facts import Facts

from tests.render.stages import AFTER_M2, MAP

ROOT = Path(__file__).parents[2]
SCHEMA = clustermap.schema(ROOT / "pillar" / "schema" / "cluster.schema.json")
MOVED = {**AFTER_M2, "auth": "directory"}
STAGES: dict[str, dict[str, Any]] = {
    "declared": AFTER_M2,
    "upcoming": {**AFTER_M2, "upcoming": {"auth": "directory"}},
    "moving": {**AFTER_M2, "upcoming": {"auth": "directory"}, "moving": True},
    "moved": MOVED,
    "going back": {**MOVED, "upcoming": {"auth": ""}},
    "finalized": {**MOVED, "given_up": ["auth"]},
}
PROVIDER = {"module": "my_provider.Provider", "config": {"url": "https://localhost:8443/"}}
OWN_ROW = {"path": "modules.0.config.url", "host": "localhost", "port": 8443}
SLAPD: dict[str, Any] = {
    "active": True,
    "managed": True,
    "bytes": 5 << 20,
    "databases": [
        {
            "backend": "mdb",
            "suffix": "dc=lale,dc=test",
            "directory": "/var/lib/ldap",
            "read_only": False,
            "replica": False,
        }
    ],
}
LISTENERS: dict[str, Any] = {
    "listeners": [{"port": 389, "address": "0.0.0.0", "program": "slapd", "unit": "slapd.service"}]
}
EMPTY: dict[str, Any] = {"listeners": [], "free": {"/var/lib/ldap": {"bytes": 1 << 30}}}


def placement(stage: str) -> plan.Placement:
    return plan.Placement.recorded(MAP, STAGES[stage])


def keyless(name: str) -> str:
    """A vault in which the milestone has made nothing yet."""
    raise Refused("secrets", [Problem("pillar/secrets.sls", f"{name} is missing", "put it")])


def slice_of(machine: str, stage: str, secret: Any = None) -> dict[str, Any]:
    keys = {"legacy": "198.18.0.10 k1", "directory": "198.18.0.15 k2"}
    wanted = secret or (lambda name: f"<{name}>")
    return slices.slice_for(MAP, placement(stage), machine, wanted, host_keys=keys)


def with_modules(listed: list[dict[str, Any]], loopback: list[dict[str, Any]]) -> dict[str, Any]:
    cmap = copy.deepcopy(MAP)
    cmap["synapse"].update(modules=listed, loopback=loopback)
    cmap["legacy"]["database"] = cmap["synapse"]["database"]
    return cmap


def facts(**found: Any) -> dict[str, Any]:
    """The answers to the precheck's questions, all well but for what is given."""
    told = {"slapd": SLAPD, "listeners": LISTENERS, "machine": EMPTY}
    return {**copy.deepcopy(told), **found}


def with_database(**row: Any) -> dict[str, Any]:
    return {**SLAPD, "databases": [{**SLAPD["databases"][0], **row}]}


@pytest.mark.parametrize(
    ("stage", "legacy", "directory"),
    [
        # So it is after a way back, too.
        ("declared", {"directory.forgotten", "transfer"}, {"directory", "transfer"}),
        ("upcoming", {"directory.offered", "transfer"}, {"directory", "transfer"}),
        # In the window nothing but the window says whether the old one takes writes.
        ("moving", {"transfer"}, {"directory", "transfer"}),
        ("moved", {"directory.fenced", "transfer"}, {"directory", "transfer"}),
        ("going back", {"directory.fenced", "transfer"}, {"directory", "transfer"}),
        (
            "finalized",
            {"directory.retired", "transfer"},
            {"directory", "directory.forgotten", "transfer.absent"},
        ),
    ],
)
def test_both_ends_follow_the_placement(
    stage: str, legacy: set[str], directory: set[str]
) -> None:
    states = set(slice_of("legacy", stage)["saltworks"]["states"])
    about = {name for name in states if name.startswith(("directory", "transfer"))}
    assert about == legacy
    row = slice_of("directory", stage)
    assert set(row["saltworks"]["states"]) == directory | {"base", "firewall"}
    assert row["firewall"]["ports"] == {636: ["198.18.0.12"]}
    assert row["directory"]["serving"] is (stage in ("moved", "going back", "finalized"))


def test_others_may_ask_the_directory_if_the_map_says_so() -> None:
    cmap = with_modules(MAP["synapse"]["modules"], MAP["synapse"]["loopback"])
    cmap["directory"] = {"clients": ["198.18.0.77", "2001:db8::/64"]}
    assert clustermap.problems(cmap, SCHEMA) == []
    made = slices.slice_for(cmap, placement("moved"), "directory", lambda name: name)
    assert made["firewall"]["ports"] == {636: ["198.18.0.12", "198.18.0.77", "2001:db8::/64"]}
    cmap["directory"]["clients"] = ["wiki.lale.test; drop"]
    assert [row.place for row in clustermap.problems(cmap, SCHEMA)] == [
        "cluster.directory.clients.0"
    ]


def test_until_the_milestone_has_made_its_keys_a_declared_machine_changes_nothing() -> None:
    def none_of_m3(name: str) -> str:
        return keyless(name) if name.startswith(("pki_", "transfer_directory")) else "x"

    row = slice_of("directory", "declared", keyless)
    assert row["saltworks"]["states"] == ["base"]
    found = slice_of("legacy", "declared", none_of_m3)
    assert not any("directory" in name for name in found["saltworks"]["states"])
    assert "directory" not in found["transfer"]["offers"]


def test_each_end_reads_one_folder_of_the_other_by_a_key_of_its_own() -> None:
    legacy, directory = (slice_of(name, "moved")["transfer"] for name in ("legacy", "directory"))
    for here, there, name, address in (
        (legacy, directory, "directory", "198.18.0.15"),
        (directory, legacy, "directory-back", "198.18.0.10"),
    ):
        offer, pull = here["offers"][name], there["pulls"][name]
        assert (offer["directory"], offer["from"]) == (pull["source"], [address])
        assert offer["key"] == f"<transfer_{name}_public>"
        assert pull["key"] == f"<transfer_{name}_private>"
    assert (legacy["from"], legacy["host_key"]) == ("198.18.0.15", "198.18.0.15 k2")
    assert (directory["from"], directory["host_key"]) == ("198.18.0.10", "198.18.0.10 k1")
    # What M2 copies is not in the way.
    assert "media" in legacy["offers"]


def test_synapse_asks_the_new_machine_by_tls_and_trusts_our_authority_alone() -> None:
    moved = plan.Placement.recorded(MAP, MOVED)
    cmap = copy.deepcopy(MAP)
    cmap["synapse"]["modules"][0]["config"].update(validate_cert=False, base="ou=people")
    row = synapse_config.homeserver_config(cmap, moved, "synapse", str)["modules"][0]
    assert row["module"] == "saltworks_ldap.LdapModule"
    assert row["config"] == {
        "uri": "ldaps://directory:636",
        "start_tls": False,
        "tls_options": {
            "validate": 2,
            "ca_certs_file": "/etc/synapse/certificates/saltworks.pem",
        },
        "base": "ou=people",
    }
    found = synapse_config.homeserver_config(cmap, placement("declared"), "synapse", str)
    assert found["modules"][0]["module"] == modules.LDAP
    assert found["modules"][0]["config"]["uri"] == "ldap://198.18.0.10:10389"


def test_the_module_s_package_is_there_before_it_is_used_so_that_no_move_changes_the_unit() -> None:
    stages = [slice_of("synapse", stage)["synapse"] for stage in STAGES]
    plugins = [row["plugins"] for row in stages]
    assert all(row == plugins[0] for row in plugins)
    assert sorted(plugins[0]) == [
            "saltworks_bus", "saltworks_ldap", "saltworks_owner", "saltworks_patience",
        ]
    trusted = ["saltworks" in row["certificates"] for row in stages]
    assert trusted == [False, True, True, True, True, True]


def test_the_package_of_ours_is_the_file_of_the_tree() -> None:
    path = modules.BOUNDED_LDAP_PACKAGE["source"].removeprefix("salt://")
    digest = hashlib.sha256((ROOT / "formulas" / path).read_bytes()).hexdigest()
    assert modules.BOUNDED_LDAP_PACKAGE["source_hash"] == f"sha256={digest}"


def test_the_relay_goes_when_there_is_no_way_back() -> None:
    assert "loopback-389" in parts.with_relays(MAP, placement("moved"))
    assert "loopback-389" not in parts.with_relays(MAP, placement("finalized"))


def test_the_window_looks_first_fences_then_copies_and_can_undo_it() -> None:
    steps = auth.steps(MAP, placement("upcoming"))
    asked = [(step.machine, step.function) for step in steps.act]
    assert asked == [("legacy", "slapd.leave"), ("directory", "slapd.take")]
    (first,) = steps.before
    assert (first.machine, first.function) == ("synapse", "slapd.answers")
    assert [(step.machine, step.function) for step in steps.undo] == [("legacy", "slapd.open")]
    back = auth.steps(MAP, placement("going back"))
    assert [(step.machine, step.function) for step in back.act] == [
        ("directory", "slapd.leave"), ("legacy", "slapd.take"),
    ]
    assert [(step.machine, step.function) for step in back.undo] == [("directory", "slapd.open")]
    # The configuration of the found server is its own.
    assert (steps.act[1].kwargs["whole"], back.act[1].kwargs["whole"]) == (True, False)


def test_a_good_found_server_may_move() -> None:
    assert set(auth.questions(MAP, placement("declared"))) == {"slapd", "listeners", "machine"}
    assert auth.problems(MAP, placement("declared"), facts()) == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (facts(slapd={"error": "/etc/ldap/slapd.d is not there"}), "slapd.d is not there"),
        (facts(slapd={**SLAPD, "active": False}), "does not run"),
        (facts(slapd={**SLAPD, "managed": False}), "may not change cn=config"),
        (facts(slapd={**SLAPD, "databases": []}), "has 0 databases"),
        (facts(slapd={**SLAPD, "databases": SLAPD["databases"] * 2}), "has 2 databases"),
        (facts(slapd=with_database(backend="hdb")), "backend hdb"),
        (facts(slapd=with_database(replica=True)), "is replicated from another"),
        (facts(slapd=with_database(read_only=True)), "is read-only"),
        (facts(slapd={**SLAPD, "bytes": 1 << 40}), "needed for the directory"),
        (facts(listeners={"listeners": []}), "is held by nobody"),
        (
            facts(listeners={"listeners": [{"port": 389, "program": "ns-slapd", "unit": "ds.x"}]}),
            "is held by ds.x",
        ),
        (
            facts(machine={**EMPTY, "listeners": [{"port": 636, "program": "x", "unit": ""}]}),
            "is held by x, slapd needs it",
        ),
    ],
)
def test_what_cannot_move_is_said_with_what_to_do(told: dict[str, Any], said: str) -> None:
    (problem,) = auth.problems(MAP, placement("declared"), told)
    assert said in problem.what
    assert problem.next_step


def test_two_directories_and_a_list_of_them_are_refused() -> None:
    row = MAP["synapse"]["modules"][0]
    loopback = [
        {"path": "modules.0.config.uri", "host": "localhost", "port": 389},
        {"path": "modules.1.config.uri.0", "host": "localhost", "port": 1389},
    ]
    told = auth.problems(with_modules([row, row], loopback), placement("declared"), facts())
    assert len(told) == 2
    assert any("names a list" in problem.what for problem in told)


def test_a_site_without_a_directory_here_has_nothing_to_move() -> None:
    without = with_modules([], [])
    without["machines"].pop("directory")
    own = with_modules([PROVIDER], [OWN_ROW])
    own["machines"].pop("directory")
    assert auth.idle(MAP) == ""
    assert "no module" in auth.idle(without)
    assert "modules.0.config.url (localhost:8443)" in auth.idle(own)
    for cmap in (without, own):
        given = Facts(cmap=cmap, schema=SCHEMA, accepted=list(cmap["machines"]))
        given = replace(given, secrets=sorted(clustermap.needed_secrets(cmap)))
        survey = precheck.survey("m3.auth", replace(given, placement=AFTER_M2))
        assert any(note.startswith("nothing to move") for note in survey.notes)
        workers = precheck.survey("m4.workers", replace(given, placement=AFTER_M2))
        for made in (survey, workers):
            assert not any("role directory" in problem.what for problem in made.problems)
        assert verify.placed("m3.auth", cmap, plan.Placement.recorded(cmap, AFTER_M2)).ok
        known = slices.for_orchestrations(cmap, None, {})["saltworks"]["parts"]["auth"]
        assert known["idle"] is True


def test_a_machine_for_nothing_is_refused() -> None:
    cmap = with_modules([PROVIDER], [OWN_ROW])
    (problem,) = auth.problems(cmap, placement("declared"), {})
    assert problem.place == "cluster.machines.directory"
    assert auth.machine(cmap, placement("declared"), "directory", str)["states"] == ["base"]


def test_the_verdict_names_whoever_takes_writes_and_should_not() -> None:
    closed = with_database(read_only=True)
    moved, finalized = placement("moved"), placement("finalized")
    good = {"new": SLAPD, "found": closed, "tls": 0.1}
    assert [row.ok for row in auth.checks(MAP, moved, good)] == [True]
    for wrong, said in (
        ({**good, "found": SLAPD}, "legacy takes writes still"),
        ({**good, "new": closed}, "directory is read-only"),
        ({**good, "tls": {"error": "certificate is not to be trusted"}}, "not to be trusted"),
    ):
        (row,) = auth.checks(MAP, moved, wrong)
        assert (row.ok, said in row.detail) == (False, True)
    assert not auth.checks(MAP, finalized, good)[0].ok
    retired = {**good, "found": {**closed, "active": False}}
    assert auth.checks(MAP, finalized, retired)[0].ok


def test_a_site_s_own_package_and_authority_come_from_the_map() -> None:
    package = {"source": "salt://plugins/my_provider.whl", "source_hash": "sha256=" + "a" * 64}
    row = {**PROVIDER, "package": package, "certificates": {"office": {"secret": "office_ca"}}}
    cmap = with_modules([row], [])
    assert clustermap.problems(cmap, SCHEMA) == []
    assert "office_ca" in clustermap.needed_secrets(cmap)
    made = slices.slice_for(cmap, placement("declared"), "synapse", lambda name: f"<{name}>")
    assert made["synapse"]["plugins"]["my_provider"] == package
    assert made["synapse"]["certificates"] == {"office": "<office_ca>"}
    assert made["synapse"]["config"]["modules"] == [PROVIDER]


@pytest.mark.parametrize(
    "wrong",
    [
        {"package": {"source": "https://pypi/x.whl", "source_hash": "sha256=" + "a" * 64}},
        {"package": {"source": "salt://x.whl", "source_hash": "md5=1"}},
        {"package": {"source": "salt://x.tar.gz", "source_hash": "sha256=" + "a" * 64}},
        {"certificates": {"saltworks": {"secret": "x"}}},
        {"certificates": {"../x": {"secret": "x"}}},
        {"certificates": {"x": "no certificate"}},
    ],
)
def test_a_package_that_cannot_be_is_refused_by_the_map(wrong: dict[str, Any]) -> None:
    cmap = with_modules([{**PROVIDER, **wrong}], [])
    places = [problem.place for problem in clustermap.problems(cmap, SCHEMA)]
    assert any(place.startswith("cluster.synapse.modules.0") for place in places)


def test_a_key_pair_is_one_and_new_each_time() -> None:
    one, other = ssh_keys.pair("a"), ssh_keys.pair("a")
    assert set(one) == {"a_private", "a_public"}
    key = serialization.load_ssh_private_key(one["a_private"].encode(), None)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert public.decode() == one["a_public"] != other["a_public"]
