"""Where standby reads refuse to start, or to use a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.process.front_door import wait_for
from tests.process.standby_house import (
    all_pair,
    packages,
    pair,
    trio,
)
from tests.process.standby_servers import Servers

__all__ = ["all_pair", "packages", "pair", "trio"]

pytestmark = pytest.mark.alone

Json = dict[str, Any]


@pytest.mark.parametrize(("change", "back", "word"), [
    ("ALTER ROLE synapse SET synchronous_commit = off",
     "ALTER ROLE synapse RESET synchronous_commit", "synchronous_commit is off for synapse"),
    ("ALTER DATABASE synapse SET synchronous_commit = local",
     "ALTER DATABASE synapse RESET synchronous_commit", "synchronous_commit is local"),
    ("REVOKE pg_read_all_stats FROM synapse", "GRANT pg_read_all_stats TO synapse",
     "GRANT pg_read_all_stats TO synapse"),
])  # fmt: skip
def test_it_does_not_start_where_it_is_unsafe(
    all_pair: Servers, change: str, back: str, word: str
) -> None:
    from synapse_standby_reads import service
    from synapse_standby_reads.config import parse
    from synapse_standby_reads.errors import Refused
    from tests.process.standby_site import pool

    database = pool(all_pair.args(0, 1))
    before = database.new_transaction
    all_pair.sql(change)
    try:
        with pytest.raises(Refused, match=word):
            service.start(parse({"standbys": [all_pair.entry(1)]}), [database])
    finally:
        all_pair.sql(back)
    assert database.new_transaction == before
    unsafe = pool(all_pair.args(0), synchronous_commit=False)
    with pytest.raises(Refused, match="synchronous_commit: false"):
        service.start(parse({"standbys": [all_pair.entry(1)]}), [unsafe])
    alone = pool({**all_pair.args(1), "target_session_attrs": "any"})
    with pytest.raises(Refused, match="add target_session_attrs"):
        service.start(parse({"standbys": [all_pair.entry(1)]}), [alone])


def test_a_pooler_in_between_is_found(all_pair: Servers) -> None:
    """Poolers tell the client a process of their own."""
    from synapse_standby_reads import selfcheck
    from tests.process.pooler import pooler
    from tests.process.standby_site import site as made

    with pooler(all_pair.all[0]["port"]) as port:
        (found,) = selfcheck.ask({**all_pair.args(0), "port": port, "sslmode": "disable"})
        assert "is a pooler" in found
    with pooler(all_pair.all[1]["port"]) as port:
        args = {**all_pair.args(0), "sslmode": "disable"}
        with made(args, {"standbys": [{"host": "127.0.0.1", "port": port}]}) as site:
            (standby,) = site.router.standbys
            wait_for("the word", lambda: "is a pooler" in standby.is_)
            assert not site.served("SELECT 1")


def test_the_release_of_the_lock_is_the_one_that_it_was_proved_on(synapse_release: Path) -> None:
    """And the seed names interactions that it has."""
    from synapse.storage.database import DatabasePool, LoggingDatabaseConnection

    from synapse_standby_reads import selfcheck, writers

    assert selfcheck.release_problem(selfcheck.installed()) is None
    assert selfcheck.interface_problems(DatabasePool, LoggingDatabaseConnection) == []
    (package,) = synapse_release.glob("lib/python3*/site-packages/synapse")
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    names = writers.SEED | writers.PRIMARY_ONLY
    assert [name for name in sorted(names) if f'"{name}"' not in source] == []
