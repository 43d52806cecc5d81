"""The checker on a real Synapse of several processes: standby reads lose nothing, naive ones do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import synapse_packages
from tests.checker.checker import Run
from tests.process import standby_faults as faults
from tests.process.standby_homeserver import MODULE, NAIVE, Homeserver, homeserver
from tests.process.standby_servers import servers

pytestmark = pytest.mark.alone

SECONDS = 8
#: Answers that a few switchovers may cost.
AT_COMMIT = 3


@pytest.fixture(scope="module")
def server(
    synapse_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Homeserver]:
    synapse_packages.add_psycopg2()
    with servers(1) as on, homeserver(
        synapse_release, on, tmp_path_factory.mktemp("homeserver")
    ) as made:
        yield made


@pytest.mark.parametrize(("config", "sql", "words"), [
    ({"standbys": [{"port": 1}], "wait": 5}, "", ["wait: no such key", "names no host"]),
    ({"standbys": [{"host": "x"}]}, "SET synchronous_commit = off",
     ["standby reads do not start", "synchronous_commit is off for synapse"]),
])  # fmt: skip
def test_a_worker_that_would_be_unsafe_ends_and_says_why(
    server: Homeserver, config: dict[str, object], sql: str, words: list[str]
) -> None:
    if sql:
        server.servers.sql(f"ALTER ROLE synapse {sql}")
    try:
        server.start("reader-1", MODULE, **config)
        assert server.running.pop("reader-1").wait(60) != 0
    finally:
        server.servers.sql("ALTER ROLE synapse RESET ALL")
    log = server.log("reader-1")
    assert [word for word in words if word not in log] == []


def test_naive_reads_of_the_standby_are_caught(server: Homeserver) -> None:
    server.read_by(NAIVE)
    on = server.servers
    with faults.late(on, 1, 150):
        ledger = Run(server.places).go(SECONDS)
    assert ledger.bad["event"] + ledger.bad["account data"] > 0, ledger
    assert ledger.bad["sync"] > 0, ledger


def test_standby_reads_lose_nothing_under_lag_death_and_frost(server: Homeserver) -> None:
    server.read_by(MODULE)
    on = server.servers
    every = [fault(on, 1) for fault in
             (faults.paused, faults.delayed, faults.killed, faults.frozen)]
    ledger = Run(server.places, every).go(SECONDS, 400)
    assert ledger.bad.total() == 0, ledger
    assert ledger.errors == [], ledger
    assert min(ledger.checks[kind] for kind in ("event", "account data", "login")) > 3, ledger
    outcomes = server.served()
    assert outcomes["standby"] > 100, outcomes


def test_nor_when_the_standby_becomes_the_primary(server: Homeserver) -> None:
    server.read_by(MODULE)
    ledger = Run(server.places, [lambda: faults.switched(server.servers)]).go(SECONDS)
    assert ledger.bad.total() == 0, ledger
    # What was cut off in its COMMIT; all others wait (the plugin saltworks_patience).
    assert len(ledger.errors) <= AT_COMMIT, ledger
    # What was the primary is a standby of the other one's now, or is it again.
    server.ready()
    before = server.served()["standby"]
    calm = Run(server.places).go(3)
    assert calm.bad.total() == 0, calm
    assert server.served()["standby"] > before
