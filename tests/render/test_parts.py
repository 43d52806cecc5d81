"""The way of a part, there and back, as Salt compiles it: each step after the one before."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.render import trees


def steps(renderer: trees.Renderer, sls: str, name: str) -> list[dict[str, Any]]:
    """The compiled steps of an orchestration, in their order."""
    cases = trees.cases_for(sls, trees.sls_files()[sls], trees.load_cases())
    (case,) = [case for case in cases if case.name == name]
    return sorted(renderer.compile(case), key=lambda row: int(row["order"]))


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [str(row["__id__"]).removeprefix("m4-workers-") for row in rows]


def test_workers_are_made_ready_for_in_order(renderer: trees.Renderer) -> None:
    rows = steps(renderer, "orch.m4.workers", "redis to come")
    assert ids(rows) == [
        "prechecked", "begun", "keyed", "upcoming", "machine", "synapse-prepared", "switched",
        "converged", "verified", "achieved", "arrived",
    ]  # fmt: skip
    keyed, upcoming, machine, prepared, switched, converged = rows[2:8]
    assert keyed["name"] == "redis"
    assert keyed["secrets"] == {"redis_password": 40, "worker_replication_secret": 40}
    assert upcoming["upcoming"] == {"redis": "redis"}
    assert (machine["tgt"], prepared["tgt"], switched["name"]) == ("redis", "synapse", "redis")
    assert converged["tgt"] == ["proxy", "synapse", "database", "storage", "directory", "redis"]


def test_once_achieved_a_further_run_renews_the_certificate_and_converges(
    renderer: trees.Renderer,
) -> None:
    rows = steps(renderer, "orch.m4.workers", "redis, second run")
    assert ids(rows) == ["prechecked", "keyed", "converged", "arrived"]


def test_the_way_back_is_recorded_and_converged(renderer: trees.Renderer) -> None:
    rows = steps(renderer, "orch.m4.workers.rollback", "redis, second run")
    assert ids(rows) == [
        "returnable", "upcoming-back", "synapse-prepared-back", "switched-back", "recorded-back",
        "converged-back",
    ]  # fmt: skip
    assert rows[1]["upcoming"] == {"redis": ""}


def test_finalize_is_armed_verified_and_recorded(renderer: trees.Renderer) -> None:
    rows = steps(renderer, "orch.m4.workers.finalize", "redis, second run")
    assert ids(rows) == ["disarmed", "verified-again", "given-up", "retired", "finalized"]
    assert rows[0]["name"] == "m4.workers.finalize"
    assert rows[2]["given_up"] == ["redis"]


@pytest.mark.parametrize("way", ["", ".rollback", ".finalize"])
def test_no_step_is_taken_before_the_one_above_it(renderer: trees.Renderer, way: str) -> None:
    for name in ("redis to come", "redis, first", "redis, second run"):
        rows = steps(renderer, f"orch.m4.workers{way}", name)
        for before, row in itertools.pairwise(rows):
            assert {before["state"]: before["__id__"]} in row["require"]


def test_all_of_m3_is_m3_and_no_more(renderer: trees.Renderer) -> None:
    rows = steps(renderer, "orch.m3", "redis, first")
    assert not [row["__id__"] for row in rows if "m4" in str(row["__id__"])]
