"""The runners and orchestrations on a real master with a real minion, as plain processes."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
from saltworks import milestone

from tests import cluster
from tests.lab.driver.saltanswer import verdict
from tests.process import house as houses
from tests.process.house import MASTER, MINION, PATIENCE, SECRETS, House, sqlite_map

#: Shown to nobody else: each secret is its own name in brackets.
OWN = {name: f"<{name}>" for name in SECRETS}


@pytest.fixture(scope="module")
def running(salt_factories: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with houses.house(tmp_path_factory.mktemp("house"), salt_factories) as house:
        yield house


@pytest.fixture
def house(running: House) -> House:
    """As after the first ``git clone``."""
    running.forget()
    return running


@pytest.fixture
def adopted(house: House) -> House:
    """With a map, its secrets and a placement, and what M1's way back keeps."""
    house.declare(sqlite_map(house.found))
    house.vault.put(OWN)
    house.record("placement", {"synapse": MINION, "front": MINION, "managed": False})
    for name in ("homeserver.yaml", "h.db", "h.db.failed_20260101000000", "backups/m1/m1.db"):
        path = house.found / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return house


def test_without_a_map_a_milestone_is_refused(house: House) -> None:
    refused = house.run("precheck.milestone", "m1")
    assert refused.code == 1
    assert "M1 refused, nothing was changed: " in refused.text
    assert "there is no cluster map -> run salt-run adopt.homeserver" in refused.text
    assert "Traceback" not in refused.text


def test_every_fault_of_a_map_is_said_at_once(adopted: House) -> None:
    cmap = copy.deepcopy(sqlite_map(adopted.found))
    cmap["colour"] = "red"
    cmap["public"]["ports"] = "443"
    cmap["machines"]["proxy2"] = {"role": "proxy", "address": "198.18.0.21"}
    adopted.declare(cmap)
    adopted.vault.path.unlink()
    adopted.vault.put({name: text for name, text in OWN.items() if name != "signing_key"})
    before = adopted.everything()
    refused = adopted.run("precheck.milestone", "m1")
    assert refused.code == 1
    faults = (
        "cluster: Additional properties are not allowed ('colour' was unexpected)",
        "cluster.public.ports: '443' is not of type 'array'",
        "role proxy is given to 2 machines: proxy, proxy2",
        "cluster.machines.proxy2: no accepted minion has the id proxy2",
        "the secret signing_key is missing",
        # By the minion's own word.
        f"{adopted.found}/homeserver.yaml: is empty or not a mapping",
    )
    assert [fault for fault in faults if fault not in refused.text] == [], refused.text
    assert "Traceback" not in refused.text
    assert adopted.everything() == before


def test_the_second_milestone_is_refused_without_the_first(adopted: House) -> None:
    before = adopted.everything()
    refused = adopted.run("state.orchestrate", "orch.m2")
    assert refused.code == 1
    assert "M1 is not achieved -> run salt-run state.orchestrate orch.m1 first" in refused.text
    assert adopted.everything() == before


def test_workers_are_refused_before_the_third(adopted: House) -> None:
    before = adopted.everything()
    refused = adopted.run("state.orchestrate", "orch.m4.workers")
    assert refused.code == 1
    assert "M3 is not achieved -> run salt-run state.orchestrate orch.m3 first" in refused.text
    assert "no machine has the role redis" in refused.text
    nothing = adopted.run("state.orchestrate", "orch.m4.workers.rollback")
    assert nothing.code == 1
    assert "m4.workers: has not begun -> there is nothing to take back" in nothing.text
    assert adopted.everything() == before


def test_the_record_is_shown(adopted: House) -> None:
    row = {"state": "achieved", "finished": 1_760_000_000.0, "verdict": "verified"}
    adopted.record("milestones", {"m1": row})
    first, *rest = adopted.run("milestone.status").data
    assert (first["milestone"], first["state"], first["verdict"]) == ("M1", "achieved", "verified")
    assert first["when"] == "2025-10-09 08:53:20 UTC"
    assert {row["state"] for row in rest} == {"not started"}


def test_each_machine_gets_its_own_slice_and_nobody_elses_secrets(adopted: House) -> None:
    def seen(pillar: dict[str, Any]) -> set[str]:
        return {name for name, text in OWN.items() if text in str(pillar)}

    found = adopted.ask("pillar.items", "unmask=True")
    assert found["saltworks"]["role"] == "legacy"
    assert seen(found) == set(OWN) - {
        "registration_shared_secret",
        "transfer_media_private",
        "transfer_database_private",
    }
    with ThreadPoolExecutor() as pool:
        proxy, master, stranger = pool.map(adopted.pillar, ("proxy", MASTER, "stranger"))
    assert seen(proxy) == {"tls_certificate", "tls_key"}
    assert (master["saltworks"]["front"], seen(master)) == (MINION, set())
    assert stranger == {}
    cmap = sqlite_map(adopted.found)
    machines = {name: row for name, row in cmap["machines"].items() if name != MINION}
    machines["other"] = cmap["machines"][MINION]
    legacy = {**cmap["legacy"], "minion": "other"}
    adopted.declare({**cmap, "machines": machines, "legacy": legacy})
    assert adopted.ask("pillar.items") == {}


def test_what_cannot_be_undone_waits_for_the_milestone_and_its_catch(adopted: House) -> None:
    def finalized(*words: str) -> houses.Answer:
        return adopted.run("state.orchestrate", "orch.m1.finalize", *words)

    kept = [adopted.found / name for name in ("backups/m1/m1.db", "h.db.failed_20260101000000")]
    adopted.record("armed", {"m1.finalize": time.time()})
    early = finalized()
    assert early.code == 1
    assert "M1 is not achieved, its way back is still needed" in early.text

    adopted.record("milestones", {"m1": {"state": "achieved", "finished": time.time()}})
    adopted.ask("saltutil.sync_all")
    before = adopted.everything()
    planned = finalized("test=True")
    assert planned.code == 0
    assert "m1.finalize would be refused unless armed" in planned.text
    assert f"{adopted.found}/backups/m1 would " in planned.text, planned.text
    assert adopted.everything() == before

    armed = time.time() - milestone.CATCH_SECONDS - 1
    adopted.record("armed", {"m1.finalize": armed})
    late = finalized()
    assert late.code == 1
    assert "m1.finalize: was armed 6" in late.text
    assert all(path.exists() for path in kept)

    adopted.run("milestone.arm", "m1.finalize")
    assert finalized().code == 0
    assert not any(path.exists() for path in kept)
    assert adopted.recorded("armed") == {}


def test_the_media_s_status_names_who_is_away_and_who_has_no_cache_and_ends(adopted: House) -> None:
    refused = adopted.run("media.status")
    assert refused.code == 1
    assert "the media: have no store yet -> run salt-run state.orchestrate" in refused.text
    row = {"synapse": MINION, "front": MINION, "managed": True, "media": "storage", "redis": "r"}
    adopted.record("placement", row)
    adopted.record("registry", {"media-1": asdict(cluster.member("media-1", "media", 1))})
    begun = time.monotonic()
    said = adopted.run("media.status")
    assert time.monotonic() - begun < PATIENCE
    assert said.code == 0, said.text
    assert said.data["store"] == {"machine": "storage"}
    assert "did not answer saltutil.sync_states" in said.data["caches"]["media-1"]["error"]
    assert "the media have not begun to move" in said.data["caches"][MINION]["error"]
    assert len(said.data["problems"]) == 3
    assert "Traceback" not in said.text


def test_a_runner_that_is_not_there_is_no_success(adopted: House) -> None:
    missing = adopted.run("precheck.no_such_thing")
    assert missing.code == 0
    assert verdict(missing.data, missing.code, MASTER)
    # The operator has not taken over `runner_dirs`.
    refused = adopted.run("state.orchestrate", "orch.m1", master_d={"runner_dirs": []})
    assert refused.code == 1
    assert "precheck.milestone: the master has no such runner -> take runner_dirs" in refused.text
    assert "Traceback" not in refused.text


def test_a_restore_to_a_time_that_cannot_be_had_changes_nothing(adopted: House) -> None:
    before = adopted.everything()
    for target, word in (
        ("noon", "target 'noon': is no time -> write one such as"),
        ("2026-11-28T01:30:00+00:00", "backups begin with m4.database"),
    ):
        words = f'pillar={{"target": "{target}"}}'
        refused = adopted.run("state.orchestrate", "orch.database.restore", words)
        assert refused.code == 1
        assert word in refused.text
        assert "Traceback" not in refused.text
    assert adopted.run("backup.status").code == 1
    assert adopted.everything() == before
