"""Standbys that freeze, die, are promoted, come and go: reads go on, and none is wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.process.front_door import wait_for
from tests.process.standby_house import (
    MAX,
    all_pair,
    counted,
    packages,
    pair,
    reading,
    trio,
    works,
)
from tests.process.standby_servers import Servers

__all__ = ["all_pair", "packages", "pair", "trio"]

pytestmark = pytest.mark.alone

Json = dict[str, Any]


def test_a_frozen_standby_is_left_and_a_slow_statement_is_not(pair: Servers) -> None:
    with reading(pair, 1) as site:
        with counted() as got:
            assert site.read("SELECT 1 FROM pg_sleep(1.5)") == 1
        assert got == {"standby": 1}
        pair.freeze(1)
        begun = time.monotonic()
        with counted() as got:
            assert site.read("SELECT 2") == 2
        assert time.monotonic() - begun < 2
        assert got == {"connection": 1}
        with counted() as got:
            begun = time.monotonic()
            assert [site.read("SELECT 3") for _ in range(20)] == [3] * 20
        assert got == {"no_standby": 20}
        assert time.monotonic() - begun < 1
        pair.thaw()
        site.ready(pair.name(1))


def test_a_killed_standby_costs_one_try(pair: Servers) -> None:
    with reading(pair, 1) as site:
        pair.kill(1)
        with counted() as got:
            assert [site.read("SELECT 3") for _ in range(20)] == [3] * 20
        assert got["connection"] <= 1
        assert got["connection"] + got["no_standby"] == 20
        pair.start(1)
        site.ready(pair.name(1))


def test_the_list_names_all_servers_and_follows_the_promotion(pair: Servers) -> None:
    """The one that is primary is skipped; the old primary serves once it is a standby."""
    with reading(pair) as site:
        pair.control(0, "-m", "fast", "stop")
        pair.promote(1)
        wait_for("the new primary", lambda: works(site, "INSERT INTO t VALUES (5)"), 20)
        # Though nobody has read.
        wait_for("the new timeline", lambda: site.router.index.timeline == 2)
        with counted() as got:
            assert [site.read(MAX) for _ in range(10)] == [5] * 10
        assert got["standby"] == 0
        breakers = [standby.breaker_state() for standby in site.router.standbys]
        assert breakers[1] == 0
        pair.follow(0, 1)
        pair.start(0)
        site.ready(pair.name(0))
        assert site.router.index.timeline == 2
        assert works(site, "INSERT INTO t VALUES (6)")
        with counted() as got:
            assert [site.read(MAX) for _ in range(10)] == [6] * 10
        assert got["standby"] > 5


def test_a_session_on_a_promoted_standby_takes_no_write(pair: Servers) -> None:
    import psycopg2

    with reading(pair, 1) as site:
        (standby,) = site.router.standbys
        connection = standby.take()
        assert connection
        pair.control(0, "-m", "fast", "stop")
        pair.promote(1)
        with pytest.raises(psycopg2.Error) as refused, connection.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (1)")
        assert refused.value.pgcode == "25006"
        standby.give(connection, True, False)


def test_a_standby_that_was_ahead_of_the_promoted_one_is_never_read(trio: Servers) -> None:
    """Its LSN is higher than the new primary's, and what it has is on no timeline of today."""
    with reading(trio) as site:
        trio.caught_up(2)
        trio.backend_cut(2)
        trio.sql("INSERT INTO t SELECT 1000 FROM generate_series(1, 20000)")
        trio.caught_up(1)
        # Connections to it know how far it is.
        site.ready(trio.name(1))
        assert site.served(MAX)
        assert site.read(MAX) == 1000
        trio.kill(0)
        trio.promote(2)
        wait_for("the new primary", lambda: works(site, "INSERT INTO t VALUES (1)"), 20)
        behind = "SELECT pg_current_wal_flush_lsn() < '{}'"
        assert trio.sql(behind.format(trio.sql("SELECT pg_last_wal_replay_lsn()", 1))) == "t"
        assert trio.sql(MAX, 1) == "1000"
        with counted() as got:
            assert [site.read(MAX) for _ in range(30)] == [1] * 30
            site.ready()
            assert [site.read(MAX) for _ in range(10)] == [1] * 10
        assert got["standby"] == 0


def test_several_share_the_reads_and_one_that_dies_leaves_them_to_the_other(
    trio: Servers,
) -> None:
    port = "SELECT inet_server_port()"
    ports = {number: int(trio.entry(number)["port"]) for number in (1, 2)}
    with reading(trio, 1, 2) as site:
        wait_for("both", lambda: {site.read(port) for _ in range(4)} == set(ports.values()))

        def twice(txn: Any) -> set[int]:
            found = set()
            for _ in range(3):
                txn.execute(port)
                found.add(txn.fetchone()[0])
            return found

        assert all(len(site.run("twice", twice)) == 1 for _ in range(10))
        trio.kill(1)
        with counted() as got:
            for _ in range(20):
                site.read("SELECT 1")
        assert got["connection"] <= 1
        assert got["standby"] >= 18
        assert {site.read(port) for _ in range(10)} == {ports[2]}


def test_standbys_come_and_go_by_the_file(trio: Servers, tmp_path: Path) -> None:
    from tests.process.standby_site import site as made

    path = tmp_path / "standbys.json"

    def write(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)

    with made(trio.args(0), {"standbys_file": str(path), "wait_ms": 40}) as site:
        assert not site.served("SELECT 1")
        for which in ([1], [1, 2], [2]):
            write(json.dumps([trio.entry(number) for number in which]))
            wait_for(f"standbys {which}", lambda want=which: {  # type: ignore[misc]
                standby.name for standby in site.router.standbys
            } == {trio.name(number) for number in want})
            site.ready(*(trio.name(number) for number in which))
        write("[{")
        wait_for("the bad file", lambda: site.router.standbys.bad_file)
        assert site.served("SELECT 1")
        write("[]")
        wait_for("none", lambda: not list(site.router.standbys))
        assert not site.served("SELECT 1")
        assert not site.router.standbys.bad_file


def test_the_standby_s_own_place_wins_over_a_service_of_many_hosts(
    all_pair: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.process.standby_site import site as made

    port = all_pair.all[0]["port"]
    file = tmp_path / "service.conf"
    file.write_text(
        f"[saltworks]\nhost=127.0.0.1,127.0.0.1\nhostaddr=127.0.0.1,127.0.0.1\n"
        f"port={port},{all_pair.all[1]['port']}\nuser=synapse\ndbname=synapse\n"
        "target_session_attrs=read-write\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    args = {"service": "saltworks", "password": "secret"}
    with made(args, {"standbys": [all_pair.entry(1)], "wait_ms": 40}) as site:
        site.ready(all_pair.name(1))
        assert site.read("SELECT inet_server_port()") == all_pair.all[1]["port"]
        assert site.router.index.connection
        assert site.router.index.connection.info.port == port
