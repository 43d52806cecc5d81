"""The way to the database's cluster, back, and of its machines, as Salt compiles it."""

from __future__ import annotations

import itertools

import pytest

from tests.render import trees
from tests.render.test_parts import steps


def ids(renderer: trees.Renderer, sls: str, name: str) -> list[str]:
    rows = steps(renderer, sls, name)
    return [str(row["__id__"]).removeprefix("m4-database-") for row in rows]


def test_the_cluster_is_made_in_order_and_nobody_restarts(renderer: trees.Renderer) -> None:
    assert ids(renderer, "orch.m4.database", "cluster to come, first") == [
        "prechecked", "begun", "keyed-dcs-1", "keyed-dcs-2", "keyed-dcs-3", "keyed-database",
        "watched", "etcd", "quorum", "founded", "store", "converged", "led", "verified", "achieved",
        "arrived",
    ]  # fmt: skip
    rows = steps(renderer, "orch.m4.database", "cluster to come, first")
    assert {row["fun"] for row in rows if row["state"] == "salt"} == {"state"}
    etcd, store, converged = (row for row in rows if row["state"] == "salt")
    assert etcd["tgt"] == ["dcs-1", "dcs-2", "dcs-3"]
    assert (store["tgt"], converged["tgt"]) == ("storage", ["database"])


def test_a_further_run_renews_certificates_and_converges(renderer: trees.Renderer) -> None:
    assert ids(renderer, "orch.m4.database", "cluster there, second run") == [
        "prechecked", "keyed-dcs-1", "keyed-dcs-2", "keyed-dcs-3", "keyed-database",
        "watched", "etcd", "quorum", "founded", "store", "converged", "led", "arrived",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sls",
    ["orch.m4.database.rollback", "orch.m4.database.finalize", "orch.database.join",
     "orch.database.leave", "orch.database.lose"],
)  # fmt: skip
def test_no_step_is_taken_before_the_one_above_it(renderer: trees.Renderer, sls: str) -> None:
    rows = steps(renderer, sls, "cluster there, second run")
    for before, row in itertools.pairwise(rows):
        assert {before["state"]: before["__id__"]} in row["require"]
