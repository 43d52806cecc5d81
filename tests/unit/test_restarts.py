"""Which processes are restarted when machines come and go, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from saltworks import plan, restarts, worker_table
from saltworks.registry import Member
from saltworks.restarts import Step, Unit

from tests import cluster

TABLE = worker_table.table()
#: Machines that are there before: two to serve, one to write.
THERE = {"sync": 2, "client": 1, "writer": 1}
MAIN = Unit("synapse", "synapse")


def unit(machine: str, number: int = 1) -> Unit:
    return Unit(machine, f"synapse-worker@{machine}-{number}")


def steps_when(
    before: Mapping[str, int], *added: Member, gone: str = ""
) -> tuple[Step, ...]:
    rows = cluster.members(before)
    left = tuple(row for row in rows if row.minion != gone)
    return restarts.steps(
        cluster.WORKER_MAP, cluster.placement(*rows), cluster.placement(*left, *added)
    )


def newcomer(kind: str, name: str = "") -> Member:
    return cluster.member(name or f"{kind}-new", kind, 5000)


#: Kinds by what their coming restarts, as the table says.
SERVING, DUTIES, WRITERS = (
    [name for name, kind in TABLE.kinds.items() if kind.restarts == what]
    for what in ("none", "duty", "all")
)


@pytest.mark.parametrize("kind", SERVING)
def test_who_only_serves_comes_and_goes_without_a_restart(kind: str) -> None:
    assert steps_when(THERE, newcomer(kind)) == ()
    assert steps_when({**THERE, kind: 3}, gone=f"{kind}-2") == ()


@pytest.mark.parametrize("kind", sorted(TABLE.kinds))
@pytest.mark.parametrize("state", ["joining", "draining"])
def test_who_is_not_ready_concerns_nobody(kind: str, state: str) -> None:
    row = cluster.member("one-more", kind, 5000, state)  # type: ignore[arg-type]
    assert steps_when(THERE, row) == ()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_s_coming_restarts_everybody_the_dutiful_first(kind: str) -> None:
    there = {"sync": 2, "client": 1}
    (stop, main, *rest) = steps_when(there, newcomer(kind))
    assert stop == Step("stop", (MAIN,))
    assert main == Step("start", (MAIN,))
    assert rest == [Step("restart", (unit("client-1"), unit("sync-1"), unit("sync-2")))]


def test_a_writer_s_going_stops_those_that_are_left_before_any_starts() -> None:
    (stop, main, others, rest) = steps_when({**THERE, "writer": 2}, gone="writer-1")
    assert stop == Step("stop", (MAIN, unit("writer-2")))
    assert main == Step("start", (MAIN,))
    assert others == Step("start", (unit("writer-2"),))
    assert rest.action == "restart"
    assert set(rest.units) == {unit("client-1"), unit("sync-1"), unit("sync-2")}


@pytest.mark.parametrize("kind", DUTIES)
def test_the_first_with_a_duty_takes_it_from_main(kind: str) -> None:
    assert steps_when(THERE, newcomer(kind)) == (Step("stop", (MAIN,)), Step("start", (MAIN,)))


@pytest.mark.parametrize("kind", ["federation-out", "pusher"])
def test_all_who_share_a_duty_stop_at_the_same_moment(kind: str) -> None:
    found = steps_when({**THERE, kind: 2}, newcomer(kind))
    shared = (unit(f"{kind}-1"), unit(f"{kind}-2"))
    assert found == (
        Step("stop", tuple(sorted((MAIN, *shared)))), Step("start", (MAIN,)), Step("start", shared),
    )


@pytest.mark.parametrize("kind", ["background", "user-directory", "appservice"])
def test_a_duty_of_one_stays_with_who_has_it(kind: str) -> None:
    assert steps_when({**THERE, kind: 1}, newcomer(kind)) == ()
    assert steps_when({**THERE, kind: 2}, gone=f"{kind}-2") == ()
    moved = steps_when({**THERE, kind: 2}, gone=f"{kind}-1")
    assert moved[0] == Step("stop", tuple(sorted((MAIN, unit(f"{kind}-2")))))


def test_a_second_media_machine_restarts_nobody() -> None:
    assert steps_when({**THERE, "media": 1}, newcomer("media")) == ()


def test_a_bus_that_moves_restarts_everybody() -> None:
    rows = cluster.members(THERE)
    before = cluster.placement(*rows)
    cmap = cluster.WORKER_MAP
    found = restarts.steps(cmap, before, replace(before, redis="redis-2"))
    assert {one for step in found for one in step.units} == {
        MAIN, unit("client-1"), unit("sync-1"), unit("sync-2"), unit("writer-1"),
    }


def test_the_first_bus_restarts_main_alone() -> None:
    after = cluster.placement()
    before: plan.Placement = replace(after, redis="")
    assert restarts.steps(cluster.WORKER_MAP, before, after) == (
        Step("stop", (MAIN,)), Step("start", (MAIN,)),
    )
    assert restarts.steps(cluster.WORKER_MAP, after, after) == ()
