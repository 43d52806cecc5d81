"""What the lab tests of M3.database have in common: they ask, conduct and watch in the same way."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from tests.lab import milestones
from tests.lab.driver.saltaccess import OnEvent
from tests.lab.stage import Stage, assert_unharmed, snapshots

MACHINES = ("legacy", "proxy", "synapse", "database")
NAME = "m3.database"
ORCH = f"orch.{NAME}"
WORST_WAIT = milestones.MILESTONES["m3"].worst_wait
#: A machine that is gone is waited for, then everybody is taken back.
WITH_A_DEAD_MACHINE = 50.0
#: What throttles the copy, so that there is time to cut it; `{}` is a limit.
LINK = "add table inet lab; add chain inet lab in {{ type filter hook input priority -20; }}; "
LINK += "add rule inet lab in ip saddr 198.18.0.10 tcp sport 15432 {} drop"
PSQL = ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]


def everything(stage: Stage) -> set[str]:
    """What may not change on any machine."""
    return snapshots(stage, MACHINES)


def sql(stage: Stage, machine: str, query: str, database: str = "synapse") -> str:
    done = stage.lab.machine(machine).run(
        [*PSQL, "-d", database], input=query, user="postgres", timeout=60
    )
    return done.stdout.strip()


def refuses_writes(stage: Stage, machine: str) -> bool:
    done = stage.lab.machine(machine).run(
        [*PSQL, "-d", "synapse"], input="CREATE TABLE mine ();", user="postgres", check=False
    )
    return not done.ok and "read-only transaction" in done.stderr


def orchestrate(stage: Stage, name: str, on_event: OnEvent) -> Any:
    stage.say(name)
    return stage.lab.salt_run(
        "state.orchestrate", name, timeout=milestones.ORCHESTRATE_SECONDS, on_event=on_event
    )


@contextlib.contextmanager
def witnessed(stage: Stage, name: str, worst_wait: float = WORST_WAIT) -> Iterator[None]:
    """People chat meanwhile, and nothing of it is lost."""
    out = stage.lab.settings.reports / f"{name}.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        yield
    report = json.loads(out.read_text())
    stage.say(f"{name}: worst wait {report.get('worst_wait_seconds')} s")
    assert_unharmed(out, worst_wait)


def cuts_in_the_copy(stage: Stage, begun: str, seconds: float) -> OnEvent:
    """Throttles the copy, and cuts the link a second after it has begun.

    begun: a command that succeeds on the new machine once it has. seconds: bound for that.
    """
    machine = stage.lab.machine("database")

    def cut() -> None:
        machine.wait_for(f"{begun} && sleep 1", seconds, "the copy to begin")
        machine.run(["nft", "delete table inet lab; " + LINK.format("")])

    def on_event(tag: str, data: dict[str, Any]) -> None:
        if tag.endswith("/new") and "roles.database.copied" in str(data.get("arg")):
            machine.run(["nft", LINK.format("limit rate over 1 mbytes/second")])
            threading.Thread(target=cut).start()

    return on_event


def kills_at(stage: Stage, function: str) -> OnEvent:
    """Pulls the new machine's plug as a function begins."""

    def on_event(tag: str, data: dict[str, Any]) -> None:
        if tag.endswith("/new") and data.get("fun") == function:
            stage.lab.machine("database").kill()

    return on_event
