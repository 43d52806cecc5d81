"""The replication row that Synapse loses by itself, with its real classes, and the way round it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests import synapse_packages


@pytest.fixture(scope="module", autouse=True)
def packages(synapse_release: Path) -> None:
    synapse_packages.add_synapse(synapse_release)


@pytest.fixture
def generator_class() -> Iterator[Any]:
    """Synapse's, as it is, whatever a test has put in it."""
    from synapse.storage.util.id_generators import MultiWriterIdGenerator as Found

    before = Found.get_minimal_local_current_token
    yield Found
    Found.get_minimal_local_current_token = before


class Writer:
    """A process that writes a stream: ids, rows once they are committed, and what others are sent.

    :ivar during: what happens while the next allocation is on its way to the database.
    """

    def __init__(self, generator: Any) -> None:
        from synapse.replication.tcp.streams._base import _StreamFromIdGen
        from synapse.storage.engines import PostgresEngine

        database = MagicMock()
        database.engine = PostgresEngine({})
        self.ids = generator(
            db_conn=MagicMock(), db=database, notifier=MagicMock(), stream_name="account_data",
            server_name="lale.test", instance_name="writer", tables=[], sequence_name="numbers",
            writers=[],
        )
        self.ids._sequence_gen = self
        self.during: Callable[[], None] = lambda: None
        self.rows: list[int] = []
        self.sent: list[int] = []
        self._last = 1
        self.stream = _StreamFromIdGen("writer", self._updates, self.ids)

    def get_next_mult_txn(self, _txn: Any, many: int) -> list[int]:
        """The sequence in the database; the answer takes a moment."""
        during, self.during = self.during, lambda: None
        during()
        first, self._last = self._last + 1, self._last + many
        return list(range(first, self._last + 1))

    async def _updates(
        self, _instance: str, after: int, upto: int, _limit: int
    ) -> tuple[list[tuple[int, list[int]]], int, bool]:
        found = [(row, [row]) for row in sorted(self.rows) if after < row <= upto]
        return found, upto, False

    def allocate(self, during: Callable[[], None] = lambda: None) -> int:
        """An id, and what happens while it is allocated."""
        self.during = during
        (found,) = self.ids._load_next_mult_id_txn(None, 1)
        return int(found)

    def commit(self, row: int) -> None:
        self.rows.append(row)
        self.ids._mark_ids_as_finished([row])

    def write(self) -> None:
        self.commit(self.allocate())

    def poke(self) -> None:
        """What the replication loop does when it is told that there may be something."""
        if self.stream.last_token != self.stream.current_token("writer"):
            updates, _, _ = asyncio.run(self.stream.get_updates())
            self.sent += [row for row, _ in updates]


def story(writer: Writer) -> None:
    """Two rows are written, and the loop poked, while a third id is allocated."""

    def meanwhile() -> None:
        writer.write()
        writer.write()
        writer.poke()

    writer.write()
    writer.poke()
    writer.commit(writer.allocate(meanwhile))
    writer.poke()


def test_synapse_loses_a_row(generator_class: Any) -> None:
    writer = Writer(generator_class)
    story(writer)
    assert writer.rows == [2, 3, 4, 5]
    assert writer.sent == [2, 4, 5]


def test_with_the_gap_closed_it_does_not(generator_class: Any) -> None:
    from synapse_standby_reads import replication_gap

    assert replication_gap.close()
    writer = Writer(generator_class)
    story(writer)
    assert writer.sent == [2, 3, 4, 5]


@pytest.mark.parametrize("closed", [False, True])
def test_every_row_is_sent_once_whatever_the_order(generator_class: Any, closed: bool) -> None:
    """Allocations within allocations, commits in any order, pokes anywhere."""
    from synapse_standby_reads import replication_gap

    if closed:
        replication_gap.close()
    lost = 0
    for seed in range(300):
        chance = random.Random(seed)
        writer = Writer(generator_class)
        waiting: list[int] = []

        def step(
            depth: int, chance: random.Random = chance, writer: Writer = writer,
            waiting: list[int] = waiting,
        ) -> None:
            what = chance.random()
            if what < 0.4:
                inner = chance.randrange(4) if depth < 3 else 0

                def meanwhile() -> None:
                    for _ in range(inner):
                        step(depth + 1)

                waiting.append(writer.allocate(meanwhile))
            elif what < 0.8 and waiting:
                writer.commit(waiting.pop(chance.randrange(len(waiting))))
            else:
                writer.poke()
                assert set(writer.sent) <= set(writer.rows)

        for _ in range(60):
            step(0)
        for row in waiting:
            writer.commit(row)
        writer.poke()
        assert len(writer.sent) == len(set(writer.sent))
        lost += sorted(writer.sent) != sorted(writer.rows)
    assert lost == 0 if closed else lost > 0


def test_another_synapse_is_left_alone(generator_class: Any) -> None:
    from synapse_standby_reads import replication_gap

    def other(self: Any) -> int:
        return 5

    generator_class.get_minimal_local_current_token = other
    assert not replication_gap.close()
    assert generator_class.get_minimal_local_current_token is other
