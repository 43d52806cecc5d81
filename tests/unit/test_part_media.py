"""M3's media part: what each machine gets of it, what speaks against it, what it must show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saltworks import clustermap, moves, parts, plan, slices, switch, synapse_config, verify
from saltworks.minions import MachineError
from saltworks.parts import media

from tests.render.stages import AFTER_M2, MAP

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "pillar/schema/cluster.schema.json").read_text(encoding="utf-8")
)
UPCOMING = {**AFTER_M2, "upcoming": {"media": "storage"}}
MOVED = {**AFTER_M2, "media": "storage"}
GOING_BACK = {**MOVED, "upcoming": {"media": ""}}
GIB = 1 << 30


def at(row: dict[str, Any]) -> plan.Placement:
    return plan.Placement.recorded(MAP, row)


def secret(name: str) -> str:
    return f"<{name}>"


def slice_of(machine: str, row: dict[str, Any], cmap: dict[str, Any] = MAP) -> dict[str, Any]:
    return slices.slice_for(cmap, at(row), machine, secret)


def provider(row: dict[str, Any], cmap: dict[str, Any] = MAP) -> list[dict[str, Any]]:
    config = synapse_config.homeserver_config(cmap, at(row), "synapse", secret)
    found: list[dict[str, Any]] = config.get("media_storage_providers", [])
    return found


def test_an_upload_is_in_the_store_before_it_is_answered() -> None:
    assert provider(AFTER_M2) == []
    row = provider(MOVED)[0]
    assert (row["store_local"], row["store_remote"], row["store_synchronous"]) == (True, True, True)
    assert row["config"] == {
        "bucket": "media",
        "region_name": "us-east-1",
        "endpoint_url": "https://storage:9000",
        "access_key_id": "<media_access_key>",
        "secret_access_key": "<media_secret_key>",
        "ca": "/etc/synapse/certificates/saltworks.pem",
    }


def test_a_provider_that_was_found_stays() -> None:
    found = {"module": "file_system", "config": {"directory": "/mnt"}}
    settings = {**MAP["synapse"]["settings"], "media_storage_providers": [found]}
    cmap = {**MAP, "synapse": {**MAP["synapse"], "settings": settings}}
    assert provider(MOVED, cmap)[0] == found
    assert len(provider(MOVED, cmap)) == 2


def test_the_upcoming_configuration_has_the_provider_and_the_one_in_use_not_yet() -> None:
    formula = slice_of("synapse", UPCOMING)["synapse"]
    assert "media_storage_providers" not in formula["config"]
    assert len(formula["upcoming"]["media_storage_providers"]) == 1
    assert formula["certificates"]["saltworks"] == "<pki_authority>"
    back = slice_of("synapse", GOING_BACK)["synapse"]
    assert "media_storage_providers" not in back["upcoming"]
    assert len(back["config"]["media_storage_providers"]) == 1


def test_nothing_is_pruned_before_the_move_nor_on_the_way_back() -> None:
    assert "media" not in slice_of("synapse", AFTER_M2)
    rows = {
        name: slice_of("synapse", row)["media"]
        for name, row in (("upcoming", UPCOMING), ("moved", MOVED), ("back", GOING_BACK))
    }
    assert {name: (row["prune"], row["counts"]) for name, row in rows.items()} == {
        "upcoming": (False, "local"),
        "moved": (True, "store"),
        "back": (False, "store"),
    }


def test_media_states_come_before_synapse_which_loads_the_provider() -> None:
    for row, wanted in ((AFTER_M2, "media.absent"), (UPCOMING, "media"), (MOVED, "media")):
        states = slice_of("synapse", row)["saltworks"]["states"]
        after = "synapse.prepared" if row is UPCOMING else "synapse"
        assert states.index(wanted) < states.index(after)


def test_synapses_unit_is_the_same_before_and_after_so_nothing_restarts_it() -> None:
    rows = (AFTER_M2, UPCOMING, MOVED, GOING_BACK)
    units = [slice_of("synapse", row)["synapse"]["service"] for row in rows]
    assert all(unit == units[0] for unit in units)
    assert units[0]["environment"]["PYTHONPATH"] == plan.PLUGINS_DIR


def test_the_cache_is_as_the_map_says() -> None:
    assert slice_of("synapse", MOVED)["media"]["cache"] == {
        "keep_bytes": 10 * GIB, "keep_seconds": 30 * 86400, "idle_seconds": 3600,
    }
    small = {**MAP, "media": {"cache_bytes": 5, "cache_days": 2}}
    cache = slice_of("synapse", MOVED, small)["media"]["cache"]
    assert (cache["keep_bytes"], cache["keep_seconds"]) == (5, 2 * 86400)
    bad = {**MAP, "media": {"cache_bytes": -1, "cache_hours": 2}}
    places = {str(problem) for problem in clustermap.problems(bad, SCHEMA)}
    assert any("cluster.media.cache_bytes" in place for place in places)
    assert any("cache_hours" in place for place in places)


def test_the_store_listens_on_its_own_address_to_synapse_alone() -> None:
    found = slice_of("storage", MOVED)
    assert found["saltworks"]["states"] == ["base", "firewall", "storage"]
    assert found["firewall"] == {"ports": {9000: ["198.18.0.12"]}}
    assert (found["storage"]["name"], found["storage"]["address"]) == ("storage", "198.18.0.14")


def test_the_store_runs_from_the_day_it_is_needed_and_no_longer() -> None:
    running = [
        row for row in (AFTER_M2, UPCOMING, MOVED, GOING_BACK)
        if "storage" in slice_of("storage", row)["saltworks"]["states"]
    ]
    assert running == [UPCOMING, MOVED, GOING_BACK]
    # Before its keys are made nothing asks for them.
    assert "<" not in json.dumps(slice_of("storage", AFTER_M2))


def test_each_secret_is_where_it_is_used_and_nowhere_else() -> None:
    names = ("pki_storage_key", "media_secret_key")
    seen = {
        machine: {name for name in names if f"<{name}>" in json.dumps(slice_of(machine, MOVED))}
        for machine in ("legacy", "proxy", "synapse", "storage", "salt")
    }
    assert seen == {
        "legacy": set(),
        "proxy": set(),
        "synapse": {"media_secret_key"},
        "storage": set(names),
        "salt": set(),
    }


def functions(steps: tuple[parts.model.Ask, ...]) -> list[str]:
    return [f"{step.machine} {step.function}" for step in steps]


def test_all_is_compared_before_the_door_closes_and_what_came_since_in_the_window() -> None:
    there = media.steps(MAP, at(UPCOMING))
    assert functions(there.before) == ["storage storage.hash", "synapse media_store.compare"]
    assert functions(there.act) == ["synapse media_store.settle"]
    back = media.steps(MAP, at(GOING_BACK))
    assert functions(back.before) == functions(back.act) == ["synapse media_store.back"]


class Machines:
    """Answers everything; notes what was called."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.calls: list[str] = []

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(function)
        if function == self.broken:
            raise MachineError(f"{function} failed")
        return {"state": "open", "target": "synapse", "seconds": 0.1}


def move(machines: Machines) -> list[str]:
    placed: list[str] = []
    row = moves.of_part(MAP, at(UPCOMING), parts.PARTS["media"])
    switch.conduct(machines, row, placed.append)
    return placed


def test_the_comparison_comes_before_anybody_waits() -> None:
    machines = Machines()
    assert move(machines) == ["moving", "arrived"]
    order = ["storage.hash", "media_store.compare", "door.announce", "door.close"]
    assert [name for name in machines.calls if name in order] == order
    assert machines.calls.index("media_store.settle") > machines.calls.index("synapse_move.leave")


def test_a_comparison_that_fails_touches_nothing() -> None:
    machines = Machines("media_store.compare")
    with pytest.raises(MachineError, match=r"media_store\.compare failed"):
        move(machines)
    assert machines.calls == ["door.status", "storage.hash", "media_store.compare"]


def test_a_part_that_has_arrived_is_no_longer_upcoming() -> None:
    machines = Machines()
    placed: list[str] = []
    row = moves.of_part(MAP, at(UPCOMING), parts.PARTS["media"])
    assert switch.conduct(machines, row, placed.append, arrived=True) == {"changed": False}
    assert (machines.calls, placed) == (["door.status"], ["arrived"])


def told(**changes: Any) -> dict[str, Any]:
    """Answers with which nothing speaks against the move, but for what is given."""
    answers: dict[str, Any] = {
        "media": {"trees": {plan.MEDIA_DIR: {"bytes": 10 * GIB, "complete": True}}},
        "ready": {"provider": "1.7.0", "unreadable": []},
        "store": {
            "listeners": [],
            "free": {media.DIRECTORY: {"bytes": 12 * GIB}},
            "trees": {f"{media.DIRECTORY}/media": {"bytes": 0, "complete": True}},
        },
    }
    return {**answers, **changes}


def store(**changes: Any) -> dict[str, Any]:
    return {**told()["store"], **changes}


def test_nothing_speaks_against_a_machine_with_room() -> None:
    assert media.questions(MAP, at(AFTER_M2)).keys() == told().keys()
    assert media.problems(MAP, at(AFTER_M2), told()) == []
    held = [{"port": 9000, "program": "rclone", "unit": "saltworks-storage.service"}]
    assert media.problems(MAP, at(AFTER_M2), told(store=store(listeners=held))) == []
    # So many files that they were not counted: the operator looks himself.
    many = {"trees": {plan.MEDIA_DIR: {"bytes": 99 * GIB, "complete": False}}}
    assert media.problems(MAP, at(AFTER_M2), told(media=many)) == []


def test_before_m2_nothing_is_asked() -> None:
    assert media.questions(MAP, at({"managed": True})) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store": store(free={media.DIRECTORY: {"bytes": 11 * GIB}})}, "12288 MiB needed"),
        (
            {"store": store(listeners=[{"port": 9000, "program": "minio", "unit": "m.service"}])},
            "minio (m.service) listens there",
        ),
        ({"ready": {"provider": "", "unreadable": []}}, "not in it: it was built from an older"),
        ({"ready": {"provider": "1.7.0", "unreadable": ["/a/b"]}}, "synapse cannot read /a/b"),
        ({"ready": {"error": "no answer"}}, "synapse: ready: no answer"),
        ({"store": {"error": "no answer"}}, "storage: store: no answer"),
    ],
)
def test_what_speaks_against_it_is_said(changes: dict[str, Any], words: str) -> None:
    found = media.problems(MAP, at(AFTER_M2), told(**changes))
    assert len(found) == 1
    assert words in str(found[0])
    assert " -> " in str(found[0])


def test_what_an_earlier_run_copied_needs_no_room_again() -> None:
    there = {f"{media.DIRECTORY}/media": {"bytes": 9 * GIB, "complete": True}}
    row = store(free={media.DIRECTORY: {"bytes": 3 * GIB}}, trees=there)
    assert media.problems(MAP, at(AFTER_M2), told(store=row)) == []


def test_the_verdict_is_by_the_disk_of_the_store() -> None:
    asked = list(media.proofs(MAP, at(MOVED)).values())
    assert functions(tuple(asked)) == ["storage storage.hash", "synapse media_store.compare"]
    seen = {"hash": {"files": 9}, "compare": {"files": 7, "read": 0}}
    good = media.checks(MAP, at(MOVED), seen)[0]
    assert good.ok
    assert "9 objects on storage; all 7 files" in good.detail
    for key in seen:
        bad = media.checks(MAP, at(MOVED), {**seen, key: {"error": "differs"}})[0]
        assert (bad.ok, bad.detail) == (False, "differs")
    assert "media store" in verify.NEXT_STEPS
    assert media.checks(MAP, at(AFTER_M2), {}) == []
