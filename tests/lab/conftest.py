"""What several tests of the lab share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.stage import Stage, staged


@pytest.fixture(scope="module")
def found() -> Iterator[Stage]:
    """A lab of its own with the old server as it is found: nobody has adopted it."""
    with staged("found", "postgresql", adopted=False) as made:
        yield made
