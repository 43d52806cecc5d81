"""The whole way again and again: `make test` goes it once, `make soak` several times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import results
from tests.lab import legacy, milestones
from tests.lab.stage import staged
from tests.lab.test_m2 import NEW

pytestmark = [pytest.mark.lab, pytest.mark.soak]

M3 = ("database", "storage", "directory")
JOURNEYS: tuple[legacy.Database, ...] = ("postgresql",) * 4 + ("sqlite",)


def test_every_journey_loses_nothing() -> None:
    rows = []
    for number, database in enumerate(JOURNEYS, 1):
        with staged("soak", database) as stage:
            # Each raises for anything lost, doubled or failed, or a difference on reading back.
            reports = [milestones.conduct(stage.lab, "m1", stage.seed)]
            stage.lab.up(NEW)
            milestones.declare(stage.lab, milestones.rows(stage.lab, NEW))
            reports.append(milestones.conduct(stage.lab, "m2", stage.seed))
            if database == "postgresql":
                # From SQLite people wait for the pass as well (test_sqlite.py).
                stage.lab.up(M3)
                milestones.declare(stage.lab, milestones.rows(stage.lab, M3))
                reports.append(milestones.conduct(stage.lab, "m3", stage.seed))
        for report in reports:
            figures = ("acknowledged", "delivered", "lost", "duplicated", "failed_requests")
            wait = f"{report['worst_wait_seconds']:.2f}"
            head = [f"{number}, {database}", report["milestone"].upper()]
            rows.append([*head, *(str(report[name]) for name in figures), wait])
    head = ["journey", "", "acknowledged", "delivered", "lost", "duplicated", "failed", "worst s"]
    written: Path = results.show("soak", "M1 to M3, again and again", head, rows)
    assert written.exists()
