"""The prechecks: every bad input said, all at once, each with what to do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saltworks import clustermap, precheck, precheck_facts, precheck_found
from saltworks.precheck_facts import Facts, is_supported_salt, questions

SCHEMA = clustermap.schema(Path(__file__).parents[2] / "pillar" / "schema" / "cluster.schema.json")
CONFIG = "/home/matrix/homeserver.yaml"
GOOD_HASH, OTHER_HASH = "a" * 64, "b" * 64
GIB = 1 << 30

MAP: dict[str, Any] = {
    "name": "lale",
    "server_name": "lale.test",
    "public": {"name": "chat.lale.test", "ports": [443, 8448]},
    "releases": {"synapse": "1.163.2"},
    "machines": {
        "salt": {"role": "master", "address": "198.18.0.2"},
        "legacy": {"role": "legacy", "address": "198.18.0.10"},
        "proxy": {"role": "proxy", "address": "198.18.0.11"},
        "synapse": {"role": "synapse", "address": "198.18.0.12"},
    },
    "legacy": {
        "minion": "legacy",
        "unit": "matrix-synapse.service",
        "user": "matrix",
        "group": "matrix",
        "config_path": CONFIG,
        "config_sha256": {CONFIG: GOOD_HASH},
        "listener": {"address": "127.0.0.1", "port": 8008},
        "media_store_path": "/home/matrix/media_store",
        "nginx_sites": [],
        "database": {"engine": "psycopg2"},
    },
    "synapse": {
        "settings": {"registration_shared_secret": {"secret": "registration_shared_secret"}},
        "database": {"engine": "psycopg2", "name": "synapse", "user": "u", "host": "localhost"},
    },
    "build": {},
    "backup": {"directory": "/var/backups/saltworks"},
}

SECRETS = ("registration_shared_secret", "signing_key", "tls_certificate", "tls_key")
ACHIEVED = {"state": "achieved"}
DATABASE: dict[str, Any] = {
    "engine": "postgresql",
    "server_version": 150014,
    "encoding": "UTF8",
    "collate": "C",
    "ctype": "C",
    "bytes": 50_000_000,
    "events": 4000,
    "schema": {"version": 61, "pending": []},
    "ssl_on": True,
    "role": {"name": "u", "may_create": True},
    "foreign_tables": [],
}


def told(address: str, **other: Any) -> dict[str, Any]:
    """What a machine says of itself."""
    folders = (
        "/opt/synapse/releases",
        "/srv/saltworks-artifacts/releases",
        "/var/backups/saltworks",
        "/var/lib/synapse",
        "/var/lib/synapse/media_store",
    )
    return {
        "salt": "3008.3",
        "salt_python": [3, 11],
        "os": {"name": "Debian", "family": "Debian", "release": "12"},
        "python": [3, 11],
        "arch": "x86_64",
        "addresses": [address],
        "free": {path: {"bytes": 50 * GIB, "device": 1, "parent": "/"} for path in folders},
        "configs": {CONFIG: GOOD_HASH},
        "listeners": [],
        "units": {"matrix-synapse.service": "active"},
        "trees": {},
        "programs": {},
        "time": 1000.5,
        **other,
    }


def facts(**other: Any) -> Facts:
    """Facts with which both milestones may start."""
    machines: dict[str, Any] = {
        name: {"facts": told(row["address"]), "asked": 1000.0, "answered": 1001.0}
        for name, row in MAP["machines"].items()
    }
    machines["legacy"]["facts"]["trees"] = {
        "/home/matrix/media_store": {"bytes": GIB, "complete": True}
    }
    machines["synapse"]["facts"]["trees"] = {
        "/var/lib/synapse/media_store": {"bytes": 0, "complete": True}
    }
    given: dict[str, Any] = {
        "cmap": copy.deepcopy(MAP),
        "schema": SCHEMA,
        "secrets": SECRETS,
        "accepted": tuple(MAP["machines"]),
        "record": {"m1": ACHIEVED},
        "master_salt": "3008.3",
        "master_python": (3, 12),
        "machines": machines,
        "audit": {"services": [], "listeners": []},
        "database": DATABASE,
        "backup": {"stands": False, "problems": [], "schema": None},
        "migration": {"way": "offline", "seconds": 5.8, "words": "", "rehearsed": None},
    }
    return Facts(**{**given, **other})


def fresh(**other: Any) -> Facts:
    """Facts before M1."""
    return facts(**{"record": {}, **other})


def changed(base: Facts, machine: str, **other: Any) -> Facts:
    """The facts, with what one machine said changed."""
    rows = copy.deepcopy(dict(base.machines))
    rows[machine]["facts"].update(other)
    return replace(base, machines=rows)


def said(name: str, given: Facts) -> str:
    found = precheck.problems(name, given)
    assert all(row.place and row.what and row.next_step for row in found)
    return "\n".join(map(str, found))


@pytest.mark.parametrize(("name", "given"), [("m1", fresh()), ("m2", facts())])
def test_a_good_cluster_may_go_on(name: str, given: Facts) -> None:
    survey = precheck.survey(name, given)
    assert survey.problems == []
    assert survey.checks > 20


def test_workers_want_all_of_m3_and_a_machine_for_redis() -> None:
    given = facts(record={"m1": ACHIEVED, "m2": ACHIEVED, "m3.media": ACHIEVED})
    text = said("m4.workers", given)
    assert "M3 is not achieved -> run salt-run state.orchestrate orch.m3 first" in text
    for role in ("database", "storage", "redis"):
        assert f"no machine has the role {role}" in text
    # This server asks nobody on the old machine for passwords.
    assert "role directory" not in text
    # What was found may be gone by then.
    assert "legacy" not in precheck_facts.NEEDS["m4.workers"].roles


def test_bad_input_is_refused_with_all_of_it_in_one_answer() -> None:
    cmap = copy.deepcopy(MAP)
    cmap["servr_name"] = "typo"
    cmap["legacy"]["listener"]["port"] = "eight"
    cmap["machines"]["second"] = {"role": "synapse", "address": "198.18.0.13"}
    bad = fresh(
        cmap=cmap,
        secrets=("signing_key", "tls_certificate"),
        accepted=("salt", "legacy", "proxy", "synapse"),
        master_salt="3007.1",
        database={
            **DATABASE,
            "server_version": 130016,
            "encoding": "SQL_ASCII",
            "collate": "de_DE.UTF-8",
            "schema": {"version": 61, "pending": ["event_labels", "users_in_public"]},
        },
        backup={
            "stands": False,
            "problems": [
                "/var/backups: 100 MiB free, 900 MiB needed for the base backup; make room or "
                "choose another folder"
            ],
        },
    )
    bad = changed(
        bad,
        "legacy",
        salt="3006.9",
        python=[3, 9],
        time=1004.0,
        configs={CONFIG: OTHER_HASH},
        units={"matrix-synapse.service": "failed"},
        free={"/opt/synapse/releases": {"bytes": 1 << 20, "device": 1, "parent": "/opt"}},
        listeners=[{"port": 8009, "address": "::", "program": "java", "unit": "jetty.service"}],
    )
    text = said("m1", bad)
    for part in (
        "'servr_name' was unexpected",
        "'eight' is not of type 'integer'",
        "role synapse is given to 2 machines: second, synapse",
        "no accepted minion has the id second",
        "the secret tls_key is missing",
        "the secret registration_shared_secret is missing",
        "master: runs Salt 3007.1",
        "legacy: runs Salt 3006.9",
        "the system's Python is 3.9, Synapse needs 3.10",
        "its clock is 3.0 s ahead of the master's",
        "PostgreSQL is 13",
        "its encoding is SQL_ASCII",
        "its collation is de_DE.UTF-8",
        "2 background updates of the old release wait: event_labels, users_in_public",
        "100 MiB free, 900 MiB needed for the base backup -> make room",
        "1 MiB free, 600 MiB needed for the release",
        f"{CONFIG}: was changed since it was adopted",
        "the server that was found is failed",
        "port 8009: is held by jetty.service",
    ):
        assert part in text, part


def test_without_a_map_the_rest_is_still_checked() -> None:
    text = said("m2", facts(cmap=None, record={}, master_salt="3008.2", machines={}))
    assert "there is no cluster map -> run salt-run adopt.homeserver" in text
    assert "M1 is not achieved" in text
    assert "runs Salt 3008.2" in text


@pytest.mark.parametrize("cmap", [[], "text", 3, {}, {"machines": []}, {"machines": {"a": 1}}])
def test_a_map_of_any_form_is_a_problem_and_no_crash(cmap: Any) -> None:
    for name in ("m1", "m2"):
        assert said(name, facts(cmap=cmap, machines={}, database=None)) != ""
        assert questions(name, facts(cmap=cmap)) == {}


def test_the_machines_a_milestone_needs_are_named() -> None:
    cmap = copy.deepcopy(MAP)
    for name in ("salt", "proxy", "synapse"):
        del cmap["machines"][name]
    text = said("m2", facts(cmap=cmap))
    for role in ("master", "proxy", "synapse"):
        assert f"no machine has the role {role}, which M2 needs" in text
    assert "role proxy" not in said("m1", fresh(cmap=cmap))


def test_a_silent_machine_is_one_problem_and_the_others_are_checked() -> None:
    given = changed(facts(), "proxy", addresses=["198.18.0.99"])
    machines = {**given.machines, "synapse": {"error": "does not answer within 5 s"}}
    text = said("m2", replace(given, machines=machines))
    assert text.count("does not answer within 5 s -> start its salt-minion") == 1
    assert "is 198.18.0.11, the machine has 198.18.0.99" in text


def test_the_new_machine_has_room_for_the_media_and_is_made_like_the_master() -> None:
    given = changed(facts(), "synapse", arch="aarch64", python=[3, 13])
    for row in given.machines["synapse"]["facts"]["free"].values():
        row["bytes"] = 2 * GIB
    text = said("m2", given)
    assert "2048 MiB free, 2151 MiB needed for the release and its logs and the media" in text
    assert "its CPU is aarch64, the master's x86_64" in text
    assert "the system's Python is 3.13, the master's, which builds the release, 3.11" in text
    copied = {"/var/lib/synapse/media_store": {"bytes": GIB, "complete": True}}
    assert "MiB needed" not in said("m2", changed(given, "synapse", trees=copied))


def test_media_too_many_to_measure_are_said() -> None:
    trees = {"/home/matrix/media_store": {"bytes": GIB, "complete": False}}
    survey = precheck.survey("m2", changed(facts(), "legacy", trees=trees))
    assert survey.problems == []
    assert "are more than 1024 MiB" in survey.notes[0]


def test_ports_may_be_held_by_those_who_will_serve_there() -> None:
    def listener(port: int, unit: str) -> dict[str, Any]:
        return {"port": port, "address": "0.0.0.0", "program": "x", "unit": unit}

    given = changed(fresh(), "legacy", listeners=[listener(8008, "matrix-synapse.service")])
    assert said("m1", given) == ""
    given = changed(facts(), "proxy", listeners=[listener(443, "nginx.service")])
    given = changed(given, "synapse", listeners=[listener(8008, "synapse.service")])
    assert said("m2", given) == ""
    given = changed(facts(), "proxy", listeners=[listener(8448, "apache2.service")])
    assert "proxy: port 8448: is held by apache2.service" in said("m2", given)


def test_what_is_asked_of_each_machine() -> None:
    asked = questions("m1", fresh())
    assert set(asked) == {"salt", "legacy"}
    assert asked["legacy"]["ports"] == [8008, 8009, 18008]
    assert asked["legacy"]["configs"] == [CONFIG]
    assert asked["legacy"]["units"] == ["matrix-synapse.service"]
    asked = questions("m2", facts(placement={"managed": True}))
    assert asked["proxy"]["ports"] == [443, 8448]
    assert asked["synapse"]["ports"] == [8008, 8009]
    assert asked["synapse"]["trees"] == ["/var/lib/synapse/media_store"]
    assert {15432, 18008, 18009} <= set(asked["legacy"]["ports"])


@pytest.mark.parametrize(("name", "given"), [("m1", fresh()), ("m2", facts())])
def test_salt_s_own_python_is_new_enough_everywhere(name: str, given: Facts) -> None:
    text = said(name, changed(replace(given, master_python=(3, 10)), "legacy", salt_python=[3, 9]))
    assert "master: its Salt runs with Python 3.10, the project's modules need 3.11" in text
    assert "legacy: its Salt runs with Python 3.9, the project's modules need 3.11" in text
    assert text.count("its Salt runs with") == 2


def test_what_else_runs_on_synapse_s_machine_is_two_problems_at_most() -> None:
    row = {"protocol": "udp", "address": "0.0.0.0", "port": 123, "by": "ntpd"}
    told = {
        "services": ["exim4.service", "ntpsec.service"],
        "listeners": [row, {**row, "protocol": "tcp", "port": 2049, "by": ""}],
    }
    problems = precheck.problems("m2", facts(audit=told))
    step = "-> stop and disable it, or choose an empty machine"
    assert [str(problem) for problem in problems] == [
        "synapse: listeners: something else runs on synapse: ntpd listens on 0.0.0.0:123 (udp); "
        f"somebody listens on 0.0.0.0:2049 (tcp) {step}",
        "synapse: services: something else runs on synapse: exim4.service runs; "
        f"ntpsec.service runs {step}",
    ]
    assert said("m1", fresh(audit=told)) == ""
    assert "cannot be seen: no ss" in said("m2", facts(audit={"error": "no ss"}))
    # Until it is achieved only; then the verdict looks.
    assert said("m2", facts(audit=told, record={"m1": ACHIEVED, "m2": ACHIEVED})) == ""


def test_the_database_that_stays_behind_serves_tls_and_is_at_rest() -> None:
    after_m1 = facts(placement={"managed": True})
    off = {**DATABASE, "ssl_on": False, "schema": {"version": 94, "pending": ["a", "b"]}}
    text = said("m2", replace(after_m1, database=off))
    assert "PostgreSQL on legacy has ssl off" in text
    assert "set `ssl = on`" in text
    assert "2 background updates still run: a, b -> wait until salt legacy synapse_db" in text
    # It is not asked for M1, where Synapse reaches it on loopback.
    assert said("m1", fresh(database={**DATABASE, "ssl_on": False})) == ""
    sqlite = {**off, "engine": "sqlite", "ssl_on": None, "server_version": "3.40.1"}
    text = said("m2", replace(after_m1, database=sqlite))
    assert "ssl" not in text
    assert "2 background updates still run" in text
    assert "connection refused" in said("m2", facts(database={"error": "connection refused"}))


def test_a_big_database_needs_a_choice() -> None:
    plan = {"way": "needs-choice", "seconds": 900.0, "words": "offline ... online ..."}
    text = said("m1", fresh(migration={**plan, "rehearsed": None}))
    assert "the time is guessed from the number of events: offline ... online ..." in text
    assert "write `upgrade: {background_updates: offline}`" in text
    assert "the time was rehearsed" in said("m1", fresh(migration={**plan, "rehearsed": 900.0}))
    notes = precheck.survey(
        "m1", fresh(migration={**plan, "way": "offline", "rehearsed": 3.4})
    ).notes
    assert notes == ["the offline migration was rehearsed: 3.4 s"]
    assert precheck_found.estimate(4000) < 60 < precheck_found.estimate(1_000_000)


def test_a_run_that_died_in_the_window_may_go_on() -> None:
    """The found server is stopped, and the schema is on its way, with updates pending."""
    given = changed(fresh(record={"m1": {"state": "running"}}), "legacy", units={})
    given = replace(
        given,
        database={**DATABASE, "schema": {"version": 94, "pending": ["something_new"]}},
        backup={"stands": True, "schema": 61},
        migration={"way": "needs-choice", "words": "", "rehearsed": None},
    )
    assert said("m1", given) == ""
    managed = changed(replace(given, placement={"managed": True}), "legacy", configs={})
    assert said("m1", managed) == ""
    # The same of a server on which nothing was begun is a problem.
    assert "the server that was found is unknown" in said(
        "m1", replace(given, record={}, backup={})
    )


THERE = {"upcoming": {"database": "database"}, "moving": True}
BACK = {"database": "database", "upcoming": {"database": ""}, "moving": True}
DONE = {name: ACHIEVED for name in ("m1", "m2", "m3.database")}
GOES_ON = "run salt-run state.orchestrate orch.m3.database{}, which goes on from there"


@pytest.mark.parametrize(
    ("name", "record", "placement", "first", "ends"),
    [
        # Another part would put its own configuration in the place of the database's.
        ("m3.media", {}, THERE, (), ""),
        ("m3.auth", {}, THERE, ("media",), ""),
        ("m3.media", DONE, BACK, (), ".rollback"),
        # One that is achieved has nothing to move, and would leave the door shut.
        ("m3.database", DONE, BACK, (), ".rollback"),
        ("m3.database", {}, THERE, (), None),
        ("m3.database", {}, BACK, (), None),
        # orch.m3: the database's window has ended by then.
        ("m3.media", {}, THERE, ("database",), None),
        ("m3.media", {"m3.media": ACHIEVED}, THERE, (), None),
        ("m2", DONE, THERE, (), None),
        ("m3.media", {}, {**THERE, "moving": False}, (), None),
    ],
)
def test_a_window_that_a_dead_run_left_open_is_ended_by_its_own_milestone_first(
    name: str, record: Any, placement: Any, first: tuple[str, ...], ends: str | None
) -> None:
    row = {"managed": True, "front": "proxy", "synapse": "synapse", **placement}
    given = facts(record={"m1": ACHIEVED, "m2": ACHIEVED, **record}, placement=row)
    text = "\n".join(map(str, precheck.survey(name, given, first).problems))
    assert ("a run is in its window, or died there" in text) is (ends is not None)
    if ends is not None:
        assert GOES_ON.format(ends) in text


def test_while_others_are_told_of_a_worker_no_milestone_begins() -> None:
    assert "others are being told of it" not in said("m1", fresh())
    assert "writer-1: others are being told of it" in said("m1", fresh(telling=["writer-1"]))


def test_when_achieved_only_what_still_matters_is_checked() -> None:
    given = changed(
        facts(database=None), "legacy", units={}, configs={}, addresses=[], free={}, time=0.0
    )
    assert said("m1", given) == ""
    assert "runs Salt 3006.1" in said("m1", changed(given, "legacy", salt="3006.1"))


def test_a_database_that_does_not_answer_is_one_problem() -> None:
    text = said("m1", fresh(database={"error": "connection refused"}, migration=None))
    assert text.startswith("legacy: database: connection refused -> see that the database runs")
    text = said("m1", fresh(backup={"error": "0 clusters here fit; name one"}))
    assert "legacy: backup: 0 clusters here fit -> name one" in text


def test_sqlite_has_its_own_minimum_and_room() -> None:
    cmap = copy.deepcopy(MAP)
    cmap["synapse"]["database"] = {"engine": "sqlite3", "path": "/home/matrix/homeserver.db"}
    database = {**DATABASE, "engine": "sqlite", "server_version": "3.34.1", "bytes": 40 * GIB}
    text = said("m1", fresh(cmap=cmap, database=database))
    assert "SQLite is 3.34.1, the new release needs 3.37.2" in text
    assert "needed for the release and the backup and its proof" in text


def test_the_verdict_needs_its_secrets() -> None:
    cmap = copy.deepcopy(MAP)
    cmap["synapse"]["settings"] = {}
    cmap["verify"] = {"password_user": "goran"}
    text = said("m1", fresh(cmap=cmap))
    assert "registration_shared_secret: is missing" in text
    assert "the secret verify_password, the password of goran, is missing" in text


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("3008.3", True),
        ("3008.12+3.gabc", True),
        ("3008.2", False),
        ("3007.9", False),
        ("3009.0", False),
        ("", False),
    ],
)
def test_salt_of_the_long_term_line(version: str, good: bool) -> None:
    assert is_supported_salt(version) is good
