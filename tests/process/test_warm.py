"""The migration's program is loaded before the window, and does nothing until it is told to."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.process import postgres, synapse_tables

#: In place of the release's Python, which would load Synapse: waits, then does as it would.
PYTHON = """#!/bin/sh
shift 2
echo loaded >>{log}
read line || exit 0
echo told >>{log}
exec "$@"
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    source = tmp_path / "homeserver.db"
    with closing(sqlite3.connect(source)) as db:
        db.executescript(synapse_tables.TABLES + synapse_tables.event(1))
    config = tmp_path / "homeserver.yaml"
    database = {"name": "sqlite3", "args": {"database": str(source)}}
    config.write_text(yaml.safe_dump({"server_name": "x", "database": database}))
    release = synapse_tables.release(tmp_path / "release")
    python = Path(release) / "bin/python"
    python.write_text(PYTHON.format(log=tmp_path / "log"))
    python.chmod(0o755)
    return {"config": str(config), "release": release, "log": str(tmp_path / "log")}


def said(site: dict[str, str]) -> list[str]:
    return Path(site["log"]).read_text().split() if Path(site["log"]).exists() else []


def test_what_is_loaded_migrates_once_it_is_told_to(site: dict[str, str]) -> None:
    salt: dict[str, Any] = postgres.loaded()
    salt["synapse_db.warm"](site["config"], site["release"])
    before = salt["synapse_db.schema"](site["config"])
    done = salt["synapse_db.migrate"](site["config"], site["release"])
    assert done["before"] == before
    assert done["changed"]
    assert said(site) == ["loaded", "told"]


def test_another_migration_than_the_one_that_is_loaded_starts_anew(site: dict[str, str]) -> None:
    salt: dict[str, Any] = postgres.loaded()
    salt["synapse_db.warm"](site["config"], site["release"], online=True)
    assert salt["synapse_db.migrate"](site["config"], site["release"])["changed"]
    assert "told" not in said(site)


def test_what_is_loaded_in_vain_ends_by_itself(site: dict[str, str]) -> None:
    salt: dict[str, Any] = postgres.loaded()
    salt["synapse_db.migrate"](site["config"], site["release"])
    salt["synapse_db.warm"](site["config"], site["release"])
    assert not salt["synapse_db.migrate"](site["config"], site["release"])["changed"]
    assert said(site) == ["loaded"]
