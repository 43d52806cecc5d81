"""Every kind of worker comes and goes, and who writes streams is decided anew when one dies."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from saltworks import joins, slices, worker_table

from tests.bench import results
from tests.lab import milestones, workers
from tests.lab.driver.settings import WORKERS
from tests.lab.stage import Stage, assert_unharmed, changes

pytestmark = [pytest.mark.lab, pytest.mark.soak]

WRITERS = ("writer-1", "writer-2")
#: One of each kind that the other tests here do not bring.
OTHERS = [name for name in WORKERS if name.rpartition("-")[0] not in ("sync", "sender", "writer")]

#: The front gives up a silent peer after 25 s (nginx.vanished).
VANISHED_SECONDS = 32.0

#: What is shown at the end.
FIGURES: list[list[str]] = []


def people(report: dict[str, Any]) -> list[str]:
    """What people saw, of a witness's report."""
    return [f"{report['worst_wait_seconds']:.1f}", str(report["failed_requests"])]


def told(stage: Stage, machine: str) -> dict[str, Any]:
    """What Synapse on a machine is told."""
    found: dict[str, Any] = yaml.safe_load(
        stage.lab.machine(machine).read("/etc/synapse/homeserver.yaml")
    )
    return found


def writers(stage: Stage, machine: str = "synapse") -> dict[str, list[str]]:
    """Machines that write the streams of the kind ``writer``, by what a machine was told."""
    streams = worker_table.table().streams.values()
    named = told(stage, machine).get("stream_writers", {})
    return {
        row.name: sorted(process.rpartition("-")[0] for process in named.get(row.name, ()))
        for row in streams
        if row.writer == "writer"
    }


def test_there_is_one_of_every_other_kind() -> None:
    kinds = {name.rpartition("-")[0] for name in OTHERS}
    assert kinds == set(worker_table.table().kinds) - {"sync", "sender", "writer"}


def test_each_other_kind_comes_serves_and_leaves(stage: Stage) -> None:
    out = stage.lab.settings.reports / "kinds.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        for name in OTHERS:
            workers.in_service(stage.lab, name)
            took = joins.report(workers.recorded(stage.lab, joins.RECORD)[name])["total_seconds"]
            kind = worker_table.table().kinds[name.rpartition("-")[0]]
            if kind.duty:
                assert f"{name}-1" in json.dumps(told(stage, "synapse")[kind.duty]), name
            left = workers.drain(stage.lab, name)
            FIGURES.append([f"{name} comes, and leaves", f"{took:.1f}, {left:.1f}", "", ""])
            stage.say(", ".join(FIGURES[-1][:2]))
            stage.lab.machine(name).stop()
    report = json.loads(out.read_text())
    FIGURES.append(["all of them", "", *people(report)])
    assert_unharmed(out, workers.WRITER_WAIT)
    # Nothing of them is left in what Synapse is told.
    assert not any(name in json.dumps(told(stage, "synapse")) for name in OTHERS)


def test_what_a_dead_writer_wrote_another_machine_writes(stage: Stage) -> None:
    for name in WRITERS:
        workers.in_service(stage.lab, name)
    shared = writers(stage)
    assert {name for row in shared.values() for name in row} == set(WRITERS)
    out = stage.lab.settings.reports / "duties.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        begun = time.monotonic()
        stage.lab.machine("writer-1").kill()
        workers.await_gone(stage.lab, "writer-1", workers.LOSS_SECONDS)
        took = time.monotonic() - begun
        for machine in ("synapse", "writer-2"):
            assert writers(stage, machine) == {row: ["writer-2"] for row in shared}, machine
        stage.lab.boot(["writer-1"], answering=False)
        workers.await_joined(stage.lab, "writer-1")
    report = json.loads(out.read_text())
    what = "writer-1's machine dies, writer-2 has its streams after"
    FIGURES.append([what, f"{took:.0f}", *people(report)])
    assert report["lost"] + report["duplicated"] + report["to_device"]["lost"] == 0
    assert writers(stage) == shared
    assert changes(stage.lab.salt("*", "state.apply", timeout=300)) == []


def test_a_machine_that_vanishes_without_a_word_keeps_its_people_waiting_for_seconds(
    stage: Stage,
) -> None:
    name = "sync-1"
    workers.in_service(stage.lab, name)
    out = stage.lab.settings.reports / "vanished.json"
    machine = stage.lab.machine(name)
    with milestones.chatting(stage.lab, stage.seed, out):
        log = f"/var/log/nginx/{slices.SITE}.access.log"
        served = rf"grep -qE '/sync[^\"]*\" 200 .* {name}-1$' {log}"
        stage.lab.machine("proxy").wait_for(served, 90, f"{name} to answer people")
        begun = time.monotonic()
        # It closes no connection: those that wait for it hear nothing.
        machine.cut()
        workers.await_gone(stage.lab, name, workers.LOSS_SECONDS)
        took = time.monotonic() - begun
        machine.mend()
        workers.await_joined(stage.lab, name)
    report = json.loads(out.read_text())
    FIGURES.append([f"{name} vanishes, it is gone after", f"{took:.0f}", *people(report)])
    assert_unharmed(out, VANISHED_SECONDS)


def test_a_worker_that_the_map_does_not_name_any_more_leaves(stage: Stage) -> None:
    name = "sync-1"
    workers.in_service(stage.lab, name)
    out = stage.lab.settings.reports / "unnamed.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        begun = time.monotonic()
        milestones.edit_map(stage.lab, lambda cluster: cluster["workers"].pop("sync"))
        workers.await_gone(stage.lab, name, workers.LEAVE_SECONDS)
        took = time.monotonic() - begun
    services = stage.lab.machine(name).run("systemctl list-units --no-legend 'synapse*'").stdout
    assert "synapse-worker@" not in services
    milestones.expect_workers(stage.lab)
    report = json.loads(out.read_text())
    what = f"the map names {name} no more, it is gone after"
    FIGURES.append([what, f"{took:.0f}", *people(report)])
    assert_unharmed(out, workers.WRITER_WAIT)


def test_what_people_saw_is_shown() -> None:
    head = ["", "seconds", "worst wait s", "refused"]
    results.show("kinds", "Kinds of workers, and who writes when one dies", head, FIGURES)
    assert FIGURES
