"""The lab in which machines of workers come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import milestones
from tests.lab.stage import Stage, after_m2
from tests.lab.test_parts.conftest import NEW


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    """Ready for workers, with none.

    Announcements and long polls are in full here, as operators have them.
    """
    with after_m2("joins", NEW) as made:
        milestones.expect_workers(made.lab)
        made.orchestrate("orch.m3")
        made.orchestrate("orch.m4.workers")
        milestones.edit_map(made.lab, lambda cluster: cluster.pop("front_door"))
        yield made
