"""M3's part database: what speaks against its move, its steps, its verdict, who holds what."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from saltworks import parts, plan, slices
from saltworks.parts import database

from tests.render.stages import AFTER_M2, M3_PLACEMENTS, MAP, SQLITE

FOUND: dict[str, Any] = {
    "version": 150014,
    "databases": {
        "postgres": {"encoding": "UTF8", "collate": "en_US.UTF-8", "ctype": "en_US.UTF-8"},
        "synapse": {"encoding": "UTF8", "collate": "C", "ctype": "C"},
    },
    "bytes": 600 << 20,
    "recovery": False,
    "ssl": True,
    "wal_level": "replica",
    "max_wal_senders": 10,
    "senders": 1,
    "max_slots": 10,
    "slots": 1,
    "synchronous": "",
    "tablespaces": {},
    "extensions": [],
}
MACHINE: dict[str, Any] = {
    "os": {"name": "Debian", "family": "Debian", "release": "12"},
    "free": {"/var/lib/postgresql": {"bytes": 8 << 30}},
    "trees": {"/var/lib/postgresql/15/main": {"bytes": 0, "complete": True}},
    "listeners": [],
}
TOLD = {"found": FOUND, "machine": MACHINE, "locales": ["C", "C.utf8", "POSIX", "en_US.utf8"]}


def placement(stage: str) -> plan.Placement:
    return plan.Placement.recorded(MAP, {"after M2": AFTER_M2, **M3_PLACEMENTS}[stage])


def problems(**changes: dict[str, Any]) -> list[str]:
    told = copy.deepcopy(TOLD)
    for key, row in changes.items():
        told[key].update(row)  # type: ignore[attr-defined]
    return [str(row) for row in database.problems(MAP, placement("after M2"), told)]


def test_a_sound_cluster_may_move() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("key", "row", "said"),
    [
        ("found", {"version": 130013}, "is version 13, the new machine has 15"),
        ("found", {"databases": {"postgres": {"collate": "C", "ctype": "C"}}}, "no database syn"),
        (
            "found",
            {"databases": {"synapse": {"collate": "en_US.UTF-8", "ctype": "C"}}},
            "has the locale en_US.UTF-8, Synapse wants C",
        ),
        (
            "found",
            {"databases": {**FOUND["databases"], "wiki": {"collate": "C", "ctype": "C"}}},
            "holds other databases, which would move along: wiki",
        ),
        ("found", {"recovery": True}, "is a standby"),
        ("found", {"ssl": False}, "has ssl off"),
        ("found", {"wal_level": "minimal"}, "wal_level minimal"),
        ("found", {"senders": 9}, "max_wal_senders 10, 9 in use; 2 needed"),
        ("found", {"slots": 10}, "max_replication_slots 10, all in use"),
        ("found", {"synchronous": "*"}, "synchronous_standby_names '*'"),
        ("found", {"tablespaces": {"1": "/srv/fast"}}, "has tablespaces: /srv/fast"),
        ("found", {"extensions": ["timescaledb"]}, "has not: timescaledb"),
        ("found", {"bytes": 9 << 30}, "8192 MiB free for /var/lib/postgresql, 12083 MiB needed"),
        ("machine", {"os": {**MACHINE["os"], "release": "13.1"}}, "runs Debian 13.1"),
        (
            "machine",
            {"listeners": [{"program": "mysqld", "unit": "", "port": 5432}]},
            "port 5432 is taken by mysqld (no unit)",
        ),
    ],
)
def test_each_obstacle_is_named_with_what_to_do(key: str, row: dict[str, Any], said: str) -> None:
    (found,) = problems(**{key: row})
    assert said in found
    assert " -> " in found


def test_all_obstacles_are_named_at_once() -> None:
    assert len(problems(found={"ssl": False, "version": 130000, "recovery": True})) == 3


def test_a_locale_that_the_new_machine_lacks_is_named() -> None:
    told = {**TOLD, "locales": ["C", "POSIX"]}
    (found,) = database.problems(MAP, placement("after M2"), told)
    assert "en_US.UTF-8" in found.what
    assert "locale-gen" in found.next_step


def test_our_own_cluster_on_the_port_is_no_stranger() -> None:
    ours = {"program": "postgres", "unit": "postgresql@15-main.service", "port": 5432}
    assert problems(machine={"listeners": [ours]}) == []


def test_a_machine_that_cannot_say_is_named_and_one_that_is_gone_is_said_elsewhere() -> None:
    told = {**TOLD, "found": {"error": "0 clusters here fit"}}
    (found,) = database.problems(MAP, placement("after M2"), told)
    assert found.place == "legacy"
    assert database.problems(MAP, placement("after M2"), {"found": FOUND}) == []


def test_a_cluster_on_another_machine_is_refused() -> None:
    elsewhere = {**MAP["synapse"]["database"], "host": "db.example"}
    cmap = {**MAP, "synapse": {**MAP["synapse"], "database": elsewhere}}
    (found,) = database.problems(cmap, placement("after M2"), {})
    assert "db.example" in found.what
    assert database.questions(cmap, placement("after M2")) == {}


def test_the_way_back_is_the_same_in_the_other_direction() -> None:
    there = database.steps(MAP, placement("database upcoming"))
    back = database.steps(MAP, placement("database moved"))
    assert [(row.machine, row.function) for row in there.act] == [
        ("legacy", "pgstandby.fence"),
        ("database", "pgstandby.promote"),
    ]
    assert [(row.machine, row.function) for row in back.act] == [
        ("database", "pgstandby.fence"),
        ("legacy", "pgstandby.promote"),
    ]
    assert [row.kwargs["followed"] for row in (there.act[1], back.act[1])] == [True, False]
    # The primary first: what it writes out shows the standby how far it is.
    assert [row.kwargs["standby"] for row in there.before] == [False, True]
    # The way back must not need the machine that may have died.
    assert {row.machine for row in there.undo} == {"legacy"}
    assert {row.machine for row in back.undo} == {"database"}


CONTENT = {"moment": "0/5000028", "tables": {"public.events": [20, "123"]}}
VERDICT: dict[str, Any] = {
    "new": {"condition": "ready", "recovery": False},
    "sessions": {"sessions": [{"client": "198.18.0.12", "role": "synapse_user", "ssl": True}]},
    "old": {"condition": "ready", "fenced": True, "recovery": True, "receiving": "streaming"},
    "old content": CONTENT,
    "new content": CONTENT,
}


def verdict(**changes: Any) -> dict[str, bool]:
    told = {**VERDICT, **{key.replace("_", " "): row for key, row in changes.items()}}
    return {row.check: row.ok for row in database.checks(MAP, placement("database moved"), told)}


def test_the_verdict() -> None:
    good = {"new database": True, "old database": True, "content": True}
    assert verdict() == good
    bare = {"sessions": [{"client": "198.18.0.12", "role": "synapse_user", "ssl": False}]}
    assert verdict(sessions=bare) == {**good, "new database": False}
    assert verdict(sessions={"sessions": []}) == {**good, "new database": False}
    assert verdict(new={"condition": "ready", "recovery": True}) == {**good, "new database": False}
    assert verdict(old={**VERDICT["old"], "fenced": False}) == {**good, "old database": False}
    assert verdict(old={"error": "gone"}) == {**good, "old database": False}
    for row in ({"error": "gone"}, {}, {**CONTENT, "moment": "0/1"}):
        assert verdict(new_content=row) == {**good, "content": False}
    other = {"moment": "0/5000028", "tables": {"public.events": [20, "124"]}}
    assert verdict(old_content=other) == {**good, "content": False}
    told = {**VERDICT, "old content": other}
    said = database.checks(MAP, placement("database moved"), told)[-1].detail
    assert "public.events" in said


def test_once_the_old_one_is_retired_it_is_not_asked() -> None:
    done = placement("M3 finalized")
    assert set(database.proofs(MAP, done)) == {"new", "sessions"}
    assert [row.check for row in database.checks(MAP, done, VERDICT)] == ["new database"]
    assert database.proofs(MAP, placement("after M2")) == {}


def slice_of(machine: str, stage: str) -> dict[str, Any]:
    return slices.slice_for(MAP, placement(stage), machine, lambda name: f"<{name}>")


STATES = {
    "after M2": (["base", "postgres.absent"], "postgres.source"),
    "database upcoming": (["base", "firewall", "postgres.configured"], "postgres.source"),
    "database moving": (["base", "firewall", "postgres.configured"], None),
    "database moved": (["base", "firewall", "postgres"], "postgres.following"),
    "back upcoming": (["base", "firewall", "postgres"], "postgres.following"),
    "M3 finalized": (["base", "firewall", "postgres"], "postgres.absent"),
}


@pytest.mark.parametrize("stage", STATES)
def test_what_each_machine_runs(stage: str) -> None:
    own, old = STATES[stage]
    assert slice_of("database", stage)["saltworks"]["states"] == own
    found = slice_of("legacy", stage)["saltworks"]["states"]
    assert [name for name in found if name.startswith("postgres")] == [old] * bool(old)


SECRETS = {
    "after M2": (set(), set()),
    "database upcoming": (
        {"pki_authority", "pki_database", "pki_database_key", "database_replication_password"},
        {"database_replication_password", "database_password"},
    ),
    "database moved": (
        {"pki_authority", "pki_database", "pki_database_key", "database_replication_password"},
        {"database_replication_password", "pki_authority"},
    ),
}


@pytest.mark.parametrize("stage", SECRETS)
def test_each_machine_holds_what_it_needs(stage: str) -> None:
    own, old = SECRETS[stage]
    assert set(re.findall(r"<(\w+)>", str(slice_of("database", stage)))) == own
    assert set(re.findall(r"<(\w+)>", str(slice_of("legacy", stage)["postgres"]))) == old


def test_who_may_come() -> None:
    before, after = slice_of("database", "database moved"), slice_of("database", "M3 finalized")
    assert before["firewall"]["ports"] == {5432: ["198.18.0.12", "198.18.0.10"]}
    assert [row["user"] for row in before["postgres"]["admits"]] == [
        "synapse_user",
        "saltworks_replication",
    ]
    assert after["firewall"]["ports"] == {5432: ["198.18.0.12"]}
    assert [row["user"] for row in after["postgres"]["admits"]] == ["synapse_user"]
    relays = {stage: parts.with_relays(MAP, placement(stage)) for stage in STATES}
    assert relays["database moved"]["postgresql"]["allow"] == ["198.18.0.12", "198.18.0.13"]
    assert "postgresql" not in relays["M3 finalized"]


def test_synapse_checks_whom_it_talks_to() -> None:
    formula = slice_of("synapse", "database moved")["synapse"]
    args = formula["config"]["database"]["args"]
    assert (args["host"], args["port"], args["sslmode"]) == ("database", 5432, "verify-full")
    assert args["sslrootcert"] == "/etc/synapse/certificates/saltworks.pem"
    assert formula["certificates"] == {"saltworks": "<pki_authority>"}
    upcoming = slice_of("synapse", "database upcoming")["synapse"]
    assert upcoming["upcoming"]["database"] == formula["config"]["database"]
    assert upcoming["config"]["database"]["args"]["host"] == "198.18.0.10"
    back = slice_of("synapse", "back upcoming")["synapse"]["upcoming"]["database"]["args"]
    assert (back["host"], back["port"]) == ("198.18.0.10", 15432)


ON_SQLITE: dict[str, Any] = {**MAP, "synapse": {**MAP["synapse"], "database": SQLITE}}
FILE_FACTS: dict[str, Any] = {"bytes": 100 << 20, "schema": {"version": 94, "pending": []}}


def test_from_sqlite_it_is_one_pass_and_no_way_leads_back() -> None:
    there = database.steps(ON_SQLITE, placement("database upcoming"))
    calls = [(row.machine, row.function) for row in (*there.before, *there.act, *there.undo)]
    assert calls == [
        ("synapse", "synapse_port.prepare"),
        ("synapse", "synapse_port.port"),
        ("synapse", "synapse_port.reopen"),
    ]
    assert parts.return_problems("m3.database", ON_SQLITE, placement("database upcoming")) == []
    moved = placement("database moved")
    (found,) = parts.return_problems("m3.database", ON_SQLITE, moved)
    assert "no way leads to SQLite" in found.what
    assert parts.return_problems("m3.database", MAP, moved) == []
    assert parts.return_problems("m3.media", ON_SQLITE, moved) == []
    assert database.steps(ON_SQLITE, moved).act == ()


def test_what_speaks_against_the_pass_from_sqlite() -> None:
    told: dict[str, Any] = {"found": FILE_FACTS, "machine": MACHINE, "locales": []}
    assert database.questions(ON_SQLITE, placement("after M2"))["found"].machine == "synapse"
    assert database.problems(ON_SQLITE, placement("after M2"), told) == []
    told["found"] = {"bytes": 5 << 30, "schema": {"pending": ["one", "two"]}}
    found = [str(row) for row in database.problems(ON_SQLITE, placement("after M2"), told)]
    assert len(found) == 2
    assert "background updates still run: one, two" in found[0]
    assert "13312 MiB needed" in found[1]


def test_the_verdict_of_the_pass() -> None:
    moved = placement("database moved")
    assert set(database.proofs(ON_SQLITE, moved)) == {"new", "sessions", "ported"}
    row = {"tables": 158, "rows": 6883, "dropped": 0, "different": []}
    for ported, good in ((row, True), ({}, False), ({"error": "gone"}, False)):
        made = database.checks(ON_SQLITE, moved, {**VERDICT, "ported": ported})
        assert [check.ok for check in made] == [True, good]
    said = database.checks(ON_SQLITE, moved, {**VERDICT, "ported": {**row, "dropped": 2}})[1]
    assert "2 with a NUL were left out" in said.detail


def test_from_sqlite_the_new_cluster_has_a_database_of_its_own() -> None:
    def of(machine: str, stage: str) -> dict[str, Any]:
        return slices.slice_for(ON_SQLITE, placement(stage), machine, lambda name: f"<{name}>")

    row = of("database", "database upcoming")["postgres"]
    assert row["provides"] == {"owner": "synapse_user", "password": "<database_password>"}
    assert (row["upstream"], row["slots"]) == ({}, [])
    assert [admitted["user"] for admitted in row["admits"]] == ["synapse_user"]
    assert of("database", "database moved")["postgres"]["provides"] == {}
    for stage in STATES:
        assert "postgres" not in of("legacy", stage)
    args = of("synapse", "database moved")["synapse"]["config"]["database"]["args"]
    assert (args["database"], args["user"], args["host"]) == ("synapse", "synapse_user", "database")
