"""A PostgreSQL of the tests' own, with a database of Synapse's shape in it; where Salt runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.process import postgres, synapse_tables
from tests.render.conftest import synapse_release

#: Once for all that have it from here: who imports it has one of its own.
__all__ = ["synapse_release"]


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The factories' own folder: by default it is one for all runs on this machine."""
    # It would greet after pytest's own last line.
    logging.getLogger("saltfactories").setLevel(logging.ERROR)
    return {"root_dir": tmp_path_factory.mktemp("factories"), "slow_stop": False}


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    with postgres.cluster() as at:
        postgres.psql(at, "CREATE DATABASE other;")
        place = f"{at['socket']}/space"
        postgres.as_user(at, "mkdir", place)
        postgres.psql(at, f"CREATE TABLESPACE far LOCATION '{place}';")
        postgres.psql(at, "CREATE TABLE notes (n integer) TABLESPACE far;", "other")
        quoted = postgres.PASSWORD.replace("'", "''")
        postgres.psql(
            at, f"CREATE ROLE synapse_user LOGIN PASSWORD '{quoted}'; CREATE ROLE reader;"
        )
        yield at


@pytest.fixture
def salt() -> dict[str, Any]:
    return postgres.loaded()


@pytest.fixture
def site(server: dict[str, Any], salt: dict[str, Any], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A database of Synapse's shape, its homeserver.yaml, a release, a backup folder."""
    postgres.psql(
        server,
        "CREATE DATABASE synapse OWNER synapse_user TEMPLATE template0 ENCODING 'UTF8' "
        "LC_COLLATE 'C' LC_CTYPE 'C';\n"
        "GRANT CONNECT ON DATABASE synapse TO reader;\n"
        "ALTER DATABASE synapse SET work_mem = '7MB';",
    )
    events = "".join(synapse_tables.event(n) for n in range(1, 21))
    postgres.psql(
        server,
        f"SET ROLE synapse_user; {synapse_tables.TABLES} {events} GRANT SELECT ON users TO reader;",
        "synapse",
    )
    config = tmp_path / "homeserver.yaml"
    args = {
        "user": "synapse_user",
        "password": postgres.PASSWORD,
        "database": "synapse",
        "host": "127.0.0.1",
        "port": server["port"],
        "cp_min": 1,
    }
    config.write_text(
        yaml.safe_dump({"server_name": "x", "database": {"name": "psycopg2", "args": args}})
    )
    folder = f"{server['top']}/backup"
    yield {
        "at": server,
        "config": str(config),
        "folder": folder,
        "release": synapse_tables.release(tmp_path / "release"),
    }
    salt["pgbackup.release"](folder, server, keep=False)
    for name in ["synapse", *salt["pgrestore.failed"](server)]:
        postgres.psql(server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE);')
