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
        ("found", {"version": 160004}, "is version 16; the new machine has 15, to which 13 and"),
        ("found", {"version": 120020}, "bring it to 13 or newer first (pg_upgradecluster)"),
        ("found", {"version": 140023}, "is version 14, the map says none -> write synapse.data"),
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
        ("found", {"slots": 10}, "max_replication_slots 10, 10 in use; 1 needed"),
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


def test_a_window_that_is_open_is_ended_by_the_switch_and_asks_nothing() -> None:
    assert database.questions(MAP, placement("database moving")) == {}
    told = {"found": {"error": "the fenced one does not run"}}
    assert database.problems(MAP, placement("database moving"), told) == []


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
    # A rollback that fails fences the old one again; on the way there the copy is thrown away.
    assert there.tried == ()
    assert [(row.machine, row.function, row.kwargs) for row in back.tried] == [
        ("legacy", "pgstandby.stand_down", {"cluster": {"port": 5432}, "taken_back": True})
    ]
    assert "is fenced before anything else" in back.tried[0].undone
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
    # Since a rollback failed: fenced it may be given up as it is, else not.
    for stands, kept in (("parted", True), ("loose", False), ("promoted", False)):
        apart = {"condition": "gone", "fenced": True, "stands": stands}
        assert verdict(old=apart) == {**good, "old database": kept}
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


BOUND = {"sslmode": "require", "channel_binding": "require"}
OLDER: dict[str, Any] = {
    **MAP,
    "synapse": {**MAP["synapse"], "database": {**MAP["synapse"]["database"], "version": 14}},
}
INSIDE: dict[str, Any] = {
    "owner": True,
    "superuser": False,
    "max_logical_replication_workers": 4,
    "max_worker_processes": 8,
    "large_objects": 0,
    "extensions": [],
    "unlogged": ["public.worker_locks", "public.worker_read_write_locks"],
    "odd": [],
    "unequal": [],
    "subscriptions": [],
    "prepared": [],
    "pending": [],
}


def older_problems(**changes: dict[str, Any]) -> list[str]:
    told: dict[str, Any] = copy.deepcopy({**TOLD, "inside": INSIDE, "locales": []})
    told["found"]["version"] = 140023
    for key, row in changes.items():
        told[key].update(row)
    return [str(row) for row in database.problems(OLDER, placement("after M2"), told)]


def test_an_older_cluster_may_move_whatever_locales_its_other_databases_have() -> None:
    assert older_problems() == []
    asked = database.questions(OLDER, placement("after M2"))["inside"]
    assert (asked.machine, asked.function) == ("legacy", "pgpublish.survey")
    assert asked.kwargs["user"] == "synapse_user"


@pytest.mark.parametrize(
    ("key", "row", "said"),
    [
        ("found", {"version": 150014}, "is version 15, the map says 14"),
        ("found", {"wal_level": "minimal"}, "wal_level minimal"),
        ("found", {"senders": 8}, "max_wal_senders 10, 8 in use; 3 needed"),
        ("found", {"slots": 8}, "max_replication_slots 10, 8 in use; 3 needed"),
        (
            "found",
            {"databases": {**FOUND["databases"], "wiki": {"collate": "C", "ctype": "C"}}},
            "holds other databases, which would not move along: wiki",
        ),
        (
            "found",
            {"databases": {"synapse": {"collate": "C", "ctype": "C", "encoding": "LATIN1"}}},
            "has the encoding LATIN1",
        ),
        ("inside", {"owner": False}, "has no role synapse_user"),
        ("inside", {"superuser": True}, "the role synapse_user is a superuser"),
        ("inside", {"max_logical_replication_workers": 0}, "1 needed for the way back"),
        ("inside", {"max_worker_processes": 2}, "has max_worker_processes 2, 3 needed"),
        ("inside", {"extensions": ["citext"]}, "has extensions: citext"),
        ("inside", {"large_objects": 4}, "has 4 large objects"),
        ("inside", {"unlogged": ["public.fast"]}, "would arrive empty: public.fast"),
        ("inside", {"odd": ["public.totals"]}, "no plain tables and would arrive empty"),
        ("inside", {"unequal": ["public.docs.d"]}, "without a key: public.docs.d"),
        ("inside", {"subscriptions": ["other"]}, "subscribes to another one: other"),
        ("inside", {"prepared": ["tx"]}, "has prepared transactions: tx"),
        ("inside", {"pending": ["slow_index"]}, "background updates still run: slow_index"),
    ],
)
def test_each_obstacle_of_an_older_one_is_named(key: str, row: dict[str, Any], said: str) -> None:
    (found,) = older_problems(**{key: row})
    assert said in found
    assert " -> " in found


def test_files_do_not_matter_where_rows_are_copied() -> None:
    assert older_problems(found={"tablespaces": {"1": "/srv"}, "extensions": ["timescaledb"]}) == []


def test_all_obstacles_of_an_older_one_are_named_at_once() -> None:
    wrong = older_problems(found={"ssl": False}, inside={"superuser": True, "extensions": ["x"]})
    assert len(wrong) == 3


def test_an_older_one_is_restarted_once_behind_the_door_and_others_are_not() -> None:
    held = database.hold(OLDER)
    assert [row.function for row in (*held.before, *held.act, *held.undo)] == [
        "pgpublish.checkpoint", "pgpublish.enable", "pgpublish.disable",
    ]  # fmt: skip
    assert held.needed is not None
    assert held.needed.function == "pgpublish.wants_restart"
    assert database.hold(MAP).act == database.hold(ON_SQLITE).act == ()
    rendered = slices.for_orchestrations(OLDER, placement("after M2"), {})["saltworks"]["parts"]
    assert {name: row["holds"] for name, row in rendered.items()} == {
        "database": True, "media": False, "auth": False, "redis": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "there", "back"),
    [
        ("after M2", False, True),
        ("database upcoming", False, True),
        # Before its copy, and people wait: the hold ends that window.
        ("database held", False, True),
        ("database moving", True, True),
        ("database moved", True, False),
        ("back upcoming", True, False),
    ],
)
def test_what_is_left_of_a_move_begins_with_its_window(stage: str, there: bool, back: bool) -> None:
    at = placement(stage)
    assert parts.resumed("database", "database", at) is there
    assert parts.resumed("database", "", at) is back
    assert not parts.resumed("database", None, at)


def test_first_comes_the_part_that_people_may_wait_for() -> None:
    names = ["database", "media", "auth"]
    assert parts.in_order(names, None) == names
    assert parts.in_order(names, placement("after M2")) == names
    assert parts.in_order(names, placement("media upcoming")) == names
    waiting = placement("media moving, database moved")
    assert parts.in_order(names, waiting) == ["media", "database", "auth"]


@pytest.mark.parametrize(
    ("stage", "left"), [("after M2", False), ("database moving", False), ("back upcoming", True)]
)
def test_what_a_failed_move_has_prepared_is_known(stage: str, left: bool) -> None:
    assert parts.left_over("database", placement(stage)) is left
    assert not parts.left_over("media", placement(stage))


def test_what_is_given_up_does_not_go_back_even_if_finalize_died() -> None:
    given_up = plan.Placement.recorded(MAP, {**M3_PLACEMENTS["M3 finalized"], "redis": ""})
    (wrong,) = parts.return_problems("m3.database", MAP, given_up)
    assert "milestone.arm m3.database.finalize" in str(wrong)


def test_the_way_back_to_an_older_one_is_the_same_in_the_other_direction() -> None:
    there = database.steps(OLDER, placement("database upcoming"))
    back = database.steps(OLDER, placement("database moved"))
    for way, old, new in ((there, "legacy", "database"), (back, "database", "legacy")):
        assert [(row.machine, row.function) for row in (*way.before, *way.act, *way.undo)] == [
            (old, "pglogical.ready_to_leave"),
            (new, "pglogical.ready_to_take"),
            (old, "pglogical.fence"),
            (new, "pglogical.take_over"),
            # The way back must not need the machine that may have died.
            (old, "pglogical.unfence"),
        ]
    assert [row.kwargs["followed"] for row in (there.act[1], back.act[1])] == [True, False]
    assert there.tried == ()
    (tried,) = back.tried
    assert (tried.machine, tried.function) == ("legacy", "pglogical.stand_down")
    assert (tried.kwargs["database"], tried.kwargs["taken_back"]) == ("synapse", True)


def test_the_verdict_on_an_older_one() -> None:
    moved = placement("database moved")
    assert database.proofs(OLDER, moved)["old"].function == "pglogical.status"
    yes, no = {"followed": True, "why": ""}, {"followed": False, "why": "in vain"}
    fenced, open_ = {"fenced": True, "condition": "ready"}, {"fenced": False}
    for row, other, good in (
        (fenced, yes, True),
        (open_, yes, False),
        (fenced, no, False),
        ({"error": "gone"}, yes, False),
        (fenced, {"error": "gone"}, False),
        ({"fenced": True, "condition": "gone", "stands": "parted"}, no, True),
        ({"fenced": False, "condition": "gone", "stands": "loose"}, no, False),
    ):
        made = database.checks(OLDER, moved, {**VERDICT, "old": row, "followed": other})
        assert {check.check: check.ok for check in made} == {
            "new database": True, "old database": good, "content": True,
        }  # fmt: skip
    done = placement("M3 finalized")
    assert set(database.proofs(OLDER, done)) == {"new", "sessions"}


def older_slice(machine: str, stage: str) -> dict[str, Any]:
    return slices.slice_for(OLDER, placement(stage), machine, lambda name: f"<{name}>")


@pytest.mark.parametrize("stage", STATES)
def test_the_machines_of_an_older_one_run_the_same(stage: str) -> None:
    own, old = STATES[stage]
    assert older_slice("database", stage)["saltworks"]["states"] == own
    found = older_slice("legacy", stage)["saltworks"]["states"]
    assert [name for name in found if name.startswith("postgres")] == [old] * bool(old)


def test_what_both_clusters_are_given_on_the_way_of_an_older_one() -> None:
    before, after, done = (
        older_slice("database", stage)["postgres"]
        for stage in ("database upcoming", "database moved", "M3 finalized")
    )
    assert before["provides"] == {"owner": "synapse_user", "password": "<database_password>"}
    assert before["upstream"] == {"host": "legacy", "port": 15432, **BOUND}
    # By the database's name: `replication` is for copies of files.
    assert before["admits"] == after["admits"] == [
        {"database": "synapse", "user": "synapse_user", "address": "198.18.0.12/32"},
        {"database": "synapse", "user": "saltworks_replication", "address": "198.18.0.10/32"},
    ]
    assert (after["upstream"], after["provides"]) == ({}, {})
    assert before["slots"] == after["slots"] == ["saltworks_back"]
    assert (done["slots"], done["logical"], len(done["admits"])) == ([], True, 1)
    source = older_slice("legacy", "database upcoming")["postgres"]
    assert source["admits"] == [
        {"database": "synapse", "user": "saltworks_replication", "address": "127.0.0.1/32"}
    ]
    assert set(source["roles"]) == {"saltworks_replication", "synapse_user"}
    assert source["slots"] == ["saltworks_there"]
    assert "roles" not in older_slice("legacy", "after M2")["postgres"]
    # The copy is whole when the window begins, and is the switch's then.
    for cmap in (MAP, OLDER):
        moving = slices.slice_for(cmap, placement("database moving"), "database", str)["postgres"]
        assert (moving["upstream"], moving["provides"]) == ({}, {})
