"""What the locked release has of its package's extras, asked as a precheck asks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from salt.exceptions import CommandExecutionError
from saltworks.parts import redis

from tests.render.conftest import RELEASE_LOCK
from tests.unit.modules.minion_modules import load

VERSION = RELEASE_LOCK.stem


@pytest.fixture
def releases(synapse_release: Path, tmp_path: Path) -> ModuleType:
    """The module on a machine with that release."""
    (tmp_path / VERSION).symlink_to(synapse_release)
    module = load("_modules", "synapse_release")
    module.RELEASES = str(tmp_path)  # type: ignore[attr-defined]
    return module


def test_the_lock_has_what_redis_needs(releases: ModuleType) -> None:
    assert releases.lacking(VERSION, redis.EXTRA) == {"packages": []}


def test_what_a_release_lacks_of_an_extra_is_named(releases: ModuleType) -> None:
    # These tests leave that one out.
    (package,) = releases.lacking(VERSION, "postgres")["packages"]
    assert package.startswith("psycopg2")
    with pytest.raises(CommandExecutionError, match="does not provide the feature 'redisx'"):
        releases.lacking(VERSION, "redisx")
