"""The monolith of M1 against M4's workers under the same load, in turns on the same host.

The two labs stand beside each other, and while one is under load the other is frozen. What makes
the load runs on the same cores; its share is in the table.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bench import load_figures, results
from tests.lab import milestones, people
from tests.lab.driver import PROJECT, Lab, LabError, cgroups, wait_for
from tests.lab.driver.process import host
from tests.lab.stage import Stage, after_m2, staged
from tests.lab.test_parts.conftest import NEW
from tests.lab.workers import await_joined, invited

pytestmark = [pytest.mark.lab, pytest.mark.bench]

Json = dict[str, Any]

#: With those that there are for it, main among them, more than two cores have to do.
WORKERS = ("sync-1", "sync-2", "sender-1", "writer-1")
ROUNDS = 2
WARM, SECONDS = 5.0, 20.0
#: Starts of the generator, and what is late.
MORE_SECONDS = 60.0
#: After a lab was frozen its timers are late; they come to rest.
REST_SECONDS = 10.0


@dataclass(frozen=True)
class Step:
    """So many senders; each sends at once again, or all together so many a second."""

    senders: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g} a second" if self.rate else f"{self.senders} senders"


STEPS = (Step(4, 5.0), Step(4), Step(16))


@dataclass(frozen=True)
class Server:
    """One of the two, and the milestone that it has achieved."""

    name: str
    lab: Lab
    milestone: milestones.Milestone

    @property
    def group(self) -> Path:
        found = cgroups.unified(self.lab.settings.cgroup)
        if found is None:
            raise LabError("this host has no control groups v2: who used the CPU cannot be told")
        return found

    def file(self, name: str) -> Path:
        return self.lab.settings.reports / f"{name}.json"

    def command(self, what: str, out: Path, *options: str) -> list[str]:
        words = [*self.lab.network.client(), sys.executable, "-m", "tests.bench.load", what]
        words += ["--url", people.PUBLIC_URL, "--ca", str(self.lab.settings.ca)]
        return [*words, "--out", str(out), *options]

    def prepare(self) -> None:
        """Registers the virtual users."""
        options = ["--admin-url", self.milestone.admin_url]
        options += ["--admin-pid", str(self.lab.machine(self.milestone.home).init())]
        host(self.command("prepare", self.file("crowd"), *options), timeout=300, cwd=PROJECT)

    def cpu(self) -> dict[str, float]:
        """CPU seconds of every unit so far, by `machine/unit`."""
        return {
            f"{machine.name}/{unit}": seconds
            for machine in self.lab.machines()
            for unit, seconds in cgroups.unit_cpu(self.group / machine.name).items()
        }

    def loaded(self, step: Step) -> Json:
        """The report of one step, with the CPU of all processes. Raises LabError."""
        out, log = self.file("load"), self.lab.settings.logs / "load.log"
        out.unlink(missing_ok=True)
        options = ["--crowd", str(self.file("crowd")), "--senders", str(step.senders)]
        options += ["--warm", str(WARM), "--seconds", str(SECONDS)]
        options += ["--rate", str(step.rate)] if step.rate else []
        looks = {}
        with (
            log.open("a") as said,
            subprocess.Popen(
                self.command("run", out, *options),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    looks[line.strip()] = self.cpu()
                process.wait(MORE_SECONDS)
            finally:
                process.kill()
        if process.returncode != 0 or not out.exists():
            raise LabError(f"the load on the {self.name} failed: {log.read_text()[-2000:]}")
        report: Json = json.loads(out.read_text())
        report["cpu"] |= load_figures.spent(looks["begin"], looks["end"])
        return report

    def rest(self) -> None:
        """Waits until it answers, and is quiet."""
        url = f"{people.PUBLIC_URL}/_matrix/client/versions"
        words = [*self.lab.network.client(), "curl", "-sf", "--cacert", str(self.lab.settings.ca)]
        wait_for(lambda: host([*words, url], check=False).ok, 90, f"the {self.name} to answer")
        time.sleep(REST_SECONDS)


@contextlib.contextmanager
def monolith() -> Iterator[Server]:
    with staged("loadm1", "postgresql") as stage:
        stage.orchestrate("orch.m1")
        yield Server("monolith of M1", stage.lab, milestones.MILESTONES["m1"])


@contextlib.contextmanager
def workers() -> Iterator[Server]:
    with after_m2("loadm4", NEW) as stage:
        achieve(stage)
        for name in WORKERS:
            invited(stage.lab, name)
            await_joined(stage.lab, name)
        yield Server("workers of M4", stage.lab, milestones.MILESTONES["m4.workers"])


def achieve(stage: Stage) -> None:
    milestones.expect_workers(stage.lab)
    stage.orchestrate("orch.m3")
    stage.orchestrate("orch.m4.workers")


def turns(servers: Sequence[Server]) -> dict[tuple[str, Step], list[Json]]:
    """Each step on each server, in every round in another order."""
    found: dict[tuple[str, Step], list[Json]] = {}
    for number in range(ROUNDS):
        for server in servers[:: -1 if number % 2 else 1]:
            server.rest()
            (other,) = [row for row in servers if row is not server]
            with cgroups.frozen(other.group):
                for step in STEPS:
                    report = server.loaded(step)
                    found.setdefault((server.name, step), []).append(report)
                    rate = report["messages"] / report["seconds"]
                    print(f"round {number + 1}, {server.name}, {step}: {rate:.1f} a second")
    return found


def test_the_monolith_and_the_workers_under_the_same_load() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(monolith()), stack.enter_context(workers())]
        for server in servers:
            server.prepare()
        found = {key: load_figures.pooled(runs) for key, runs in turns(servers).items()}
    rows, saturated = [], []
    for server in servers:
        steps = [(step, found[server.name, step]) for step in STEPS]
        most = max((figures for step, figures in steps if step.rate is None), key=lambda f: f.rate)
        saturated.append(most)
        for step, figures in steps:
            each = ", ".join(f"{rate:.1f}" for rate in figures.rates)
            shown = [f"{figures.rate:.1f}", each, f"{figures.p50:.0f}", f"{figures.p95:.0f}"]
            words = f"{step}, saturated" if figures is most else str(step)
            counts = [str(figures.missing), str(figures.troubles)]
            rows.append([server.name, words, *shown, *counts])
    head = ["", "load", "messages a second", "of each round", "send to delivery, ms: half"]
    head += ["95 %", "not delivered", "troubles"]
    profile = load_figures.Profile()
    title = f"{profile.users} users who poll and write into {profile.rooms} rooms, 80/20, in turns"
    results.show("load", title, head, rows)
    head = ["CPU seconds of"]
    for server in servers:
        head += [server.name, "for 1,000 messages"]
    results.show("load-cpu", "The same, saturated", head, load_figures.cpu_rows(saturated))
    assert all(figures.missing == 0 for figures in found.values())
