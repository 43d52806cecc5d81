"""The lab in which the parts of M3 move one after the other, and workers come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import milestones
from tests.lab.stage import Stage, after_m2

NEW = ("database", "storage", "directory", "redis")


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    """M2 is achieved, and the machines of M3 and of Redis are empty.

    The tests stand in the order in which they happen to the server, file by file.
    """
    with after_m2("parts", NEW) as made:
        yield made


@pytest.fixture(scope="package")
def before(stage: Stage) -> dict[str, Any]:
    """What everybody sees before anything has moved."""
    out = stage.lab.settings.reports / "readback-before.json"
    return milestones.read_back(stage.lab, stage.seed, out, milestones.MILESTONES["m2"])
