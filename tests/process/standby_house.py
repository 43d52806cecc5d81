"""Real servers with a few tables, and a site that reads from them: fixtures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import synapse_packages
from tests.process.standby_servers import Servers, servers

if TYPE_CHECKING:
    from tests.process.standby_site import Site

Json = dict[str, Any]

TABLES = """
CREATE TABLE t (n integer); INSERT INTO t VALUES (0);
CREATE TABLE unique_n (n integer PRIMARY KEY);
CREATE UNLOGGED TABLE locks (n integer);
CREATE SEQUENCE numbers;
"""
MAX = "SELECT max(n) FROM t"


@pytest.fixture(scope="module", autouse=True)
def packages(synapse_release: Path) -> None:
    synapse_packages.add_synapse(synapse_release)


@pytest.fixture
def pair() -> Iterator[Servers]:
    with servers(1) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        made.caught_up(1)
        yield made


@pytest.fixture
def trio() -> Iterator[Servers]:
    with servers(2) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        yield made


@pytest.fixture(scope="module")
def all_pair(packages: None) -> Iterator[Servers]:
    """One for tests that change nothing."""
    with servers(1) as made:
        made.sql(f"SET ROLE synapse; {TABLES}")
        made.caught_up(1)
        yield made


@contextlib.contextmanager
def reading(on: Servers, *standbys: int, **config: Any) -> Iterator[Site]:
    """A site of all these servers, whose standbys serve."""
    from tests.process.standby_site import site

    every = range(len(on.all))
    entries = [on.entry(number) for number in standbys or every]
    with site(on.args(*every), {"standbys": entries, "wait_ms": 40, **config}) as made:
        made.ready(*(on.name(number) for number in standbys or every if number != on.primary))
        yield made


def counted() -> Any:
    from tests.process import standby_site

    return standby_site.counted()


def works(site: Site, sql: str) -> bool:
    """Whether the primary takes a write, on a connection that may just have died."""
    import psycopg2

    def write(txn: Any) -> None:
        txn.execute(sql)

    write.__qualname__ = "DatabasePool.simple_insert_txn"
    try:
        site.run("works", write)
    except psycopg2.Error:
        site.connection().close()
        return False
    return True
