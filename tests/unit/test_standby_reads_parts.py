"""Standby reads, the parts that need no server: configuration, fence, breaker, coalescing, list."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synapse_standby_reads import breaker, config, fence, writers
from synapse_standby_reads.coalesce import Coalesced
from synapse_standby_reads.errors import Fallback, Refused
from tests.synapse_packages import add_psycopg2

add_psycopg2()

import psycopg2  # noqa: E402

from synapse_standby_reads import attempt, selfcheck, standbys  # noqa: E402
from synapse_standby_reads.standby import READY, what_it_is  # noqa: E402

OWN = {
    "user": "synapse", "password": "x", "host": "a,b", "port": "5432,5433", "cp_min": 5,
    "target_session_attrs": "read-write", "connect_timeout": 9, "options": "-c search_path=x",
}


def test_ten_lines_are_enough() -> None:
    made = config.parse({"standbys": [{"host": "one"}]})
    assert made.reads
    assert (made.only, made.single_statements, made.wait_ms) == (frozenset(), False, 20)
    assert made.unproved_release == "refuse"
    assert not config.parse(None).reads
    assert not config.parse({"standbys": [], "close_replication_gap": True}).reads
    assert config.parse({"standbys_file": "/x.json", "only": ["a"]}).only == {"a"}


@pytest.mark.parametrize(("given", "words"), [
    ({"standby": []}, ["standby: no such key", "standbys_file"]),
    ({"standbys": {}}, ["standbys: {} is not of type list"]),
    ({"standbys": [{"port": 1}]}, ["standby 1", "names no host"]),
    ({"standbys": ["a"]}, ["standby 1"]),
    ({"standbys": [{"host": "a,b"}]}, ["an entry is one server"]),
    ({"standbys": [{"host": "a"}, {"host": "a", "port": 5432}]}, ["a:5432 is there twice"]),
    ({"standbys": [{"host": "a", "options": ["x"]}]}, ["plain values"]),
    ({"standbys": [], "standbys_file": "/x"}, ["say one of the two"]),
    ({"wait_ms": 0, "longest_ms": True}, ["wait_ms: 0", "longest_ms: True is not of type int"]),
    ({"only": [1]}, ["only:"]),
    ({"unproved_release": "ignore"}, ["'ignore' is neither of refuse, warn"]),
])  # fmt: skip
def test_every_problem_is_said_at_once(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        config.parse(given)
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_standby_s_connection_goes_to_that_one_and_inherits_the_rest() -> None:
    args = config.standby_args(OWN, {"host": "one"})
    assert (args["host"], args["port"], args["hostaddr"]) == ("one", 5432, "")
    assert args["target_session_attrs"] == "any"
    assert (args["user"], args["password"], args["connect_timeout"]) == ("synapse", "x", 9)
    assert args["options"].startswith("-c search_path=x -c default_transaction_read_only=on")
    assert "cp_min" not in args
    other = config.standby_args(OWN, {"host": "one", "port": 7, "user": "reader"})
    assert (other["port"], other["user"]) == (7, "reader")
    primary = config.primary_args(OWN)
    assert (primary["host"], primary["target_session_attrs"]) == ("a,b", "read-write")
    assert config.primary_args({})["connect_timeout"] == config.CONNECT_SECONDS


def test_what_has_finished_on_the_primary() -> None:
    at = fence.position("A/FF", 1, "10:20:10,15")
    assert at == fence.Position((10 << 32) + 255, 1, 10, 20, (10, 15))
    finished = {xid: at.finished(xid) for xid in (9, 10, 11, 15, 19, 20, 21)}
    assert finished == {9: True, 10: False, 11: True, 15: False, 19: True, 20: False, 21: False}
    assert fence.position("0/1", 1, "5:5:").running == ()
    assert fence.unfinished((9, 15, 20), at) == [15, 20]
    later = fence.position("B/0", 1, "21:21:")
    assert fence.unfinished((9, 15, 20), later) == []


def test_the_standby_s_word_on_its_suspects() -> None:
    assert fence.suspects(["NOTICE:  synapse_standby_reads suspects:;\n"]) == ()
    assert fence.suspects(["other", "HINWEIS:  synapse_standby_reads suspects:7,19;\n"]) == (7, 19)
    assert fence.suspects(["NOTICE:  synapse_standby_reads suspects:7,1"]) is None
    assert fence.suspects([]) is None


def test_a_breaker_lets_one_at_a_time_try() -> None:
    made = breaker.Breaker()
    assert made.allows(0.0)
    assert made.allows(0.0)
    made.failed(0.0)
    assert made.state(1.9) == breaker.OPEN
    assert not made.allows(1.9)
    assert made.state(2.0) == breaker.HALF_OPEN
    assert [made.allows(2.0), made.allows(2.0)] == [True, False]
    made.abandoned()
    assert [made.allows(2.0), made.allows(2.0)] == [True, False]
    made.failed(2.1)
    assert not made.allows(4.0)
    assert made.allows(4.2)
    made.succeeded()
    assert made.state(4.2) == breaker.CLOSED
    assert [made.allows(4.2), made.allows(4.2)] == [True, True]


def test_three_late_answers_in_a_row_make_a_pause() -> None:
    made = breaker.LagPause()
    for now in (0.0, 0.1):
        made.late(now)
    made.in_time()
    for now in (0.2, 0.3):
        made.late(now)
    assert not made.paused(0.3)
    made.late(0.4)
    assert made.paused(0.5)
    assert not made.paused(0.7)


class Primary:
    """Answers when it is let, with how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = threading.Semaphore(0)

    def fetch(self) -> int:
        self.asked += 1
        number = self.asked
        assert self.go.acquire(timeout=5)
        if number == 3:
            raise ValueError("the third fails")
        return number


def later(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_who_comes_while_a_question_is_under_way_shares_the_next_one() -> None:
    primary = Primary()
    made = Coalesced(primary.fetch, 5)
    first = later(made.get)
    _until(lambda: primary.asked == 1)
    others = [later(made.get) for _ in range(5)]
    time.sleep(0.05)
    assert primary.asked == 1
    primary.go.release()
    first[0].join(5)
    assert first[1] == [1]
    _until(lambda: primary.asked == 2)
    third = [later(made.get) for _ in range(3)]
    time.sleep(0.05)
    primary.go.release()
    for thread, _ in others:
        thread.join(5)
    assert [found for _, found in others] == [[2]] * 5
    primary.go.release()
    for thread, _ in third:
        thread.join(5)
    # An error is everybody's who waited for it, and nobody's after.
    assert [found for _, found in third] == [["the third fails"]] * 3
    primary.go.release()
    assert made.get() == 4


def test_nobody_waits_for_ever_for_an_answer() -> None:
    primary = Primary()
    made = Coalesced(primary.fetch, 0.1)
    first = later(made.get)
    _until(lambda: primary.asked == 1)
    waiting = [later(made.get) for _ in range(3)]
    for thread, found in waiting:
        thread.join(5)
        assert "no answer within" in found[0]
    primary.go.release()
    first[0].join(5)
    primary.go.release()
    assert made.get() == 2


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_writers_are_known_by_name_by_seed_and_by_learning() -> None:
    made = writers.Writers()
    assert ("x", "DatabasePool.simple_upsert_txn") in made
    assert ("x", "DatabasePool.simple_select_one_txn") not in made
    assert ("persist_events", "whatever") in made
    key = ("desc", "Store._txn")
    assert key not in made
    assert made.learn(key)
    assert not made.learn(key)
    assert key in made
    assert len(made) == 1
    assert writers.name_of(test_nobody_waits_for_ever_for_an_answer).startswith("test_nobody")
    assert writers.name_of(Primary()) == "Primary"  # type: ignore[arg-type]


def test_what_an_error_means() -> None:
    class Server(psycopg2.Error):  # type: ignore[misc]
        pgcode: str | None = None

    def outcome(code: str | None) -> tuple[str, bool]:
        error = Server()
        type(error).pgcode = code
        found = attempt.means(error)
        return found.outcome, found.learn

    codes = ("25006", "0A000", "SR001", "SR002", "SR003", "40001", "08006", "57P01", None, "42P01")
    assert [outcome(code) for code in codes] == [
        ("learn", True), ("learn", True), ("timeline", False), ("lag", False), ("ahead", False),
        ("conflict", False), ("connection", False), ("connection", False), ("connection", False),
        ("sql", False),
    ]
    assert attempt.means(Fallback("barrier")).outcome == "barrier"


def test_a_standby_that_is_known_to_be_there_is_not_asked_again() -> None:
    """Known on the same timeline: what it had on another one says nothing."""

    def waits(known: tuple[int, int]) -> bool:
        at = fence.Position(100, 2, 5, 5, ())
        connection: Any = SimpleNamespace(known=known, notices=["old"])
        tried = attempt.Attempt(lambda: at, 20)
        sql = tried.opening(connection).decode()
        assert tried.opening(connection) == b""
        assert tried.asked
        assert connection.notices == []
        assert "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" in sql
        return "pg_last_wal_replay_lsn" in sql

    assert [waits(known) for known in ((0, -1), (2, 99), (2, 100), (2, 200), (1, 200), (3, 200))] \
        == [True, True, False, False, True, True]


def test_what_a_server_is() -> None:
    primary: Any = SimpleNamespace(system=7, timeline=3)
    unknown: Any = SimpleNamespace(system=0, timeline=0)
    assert what_it_is(True, 7, 3, primary) == READY
    assert what_it_is(True, 7, 2, primary) == "another timeline"
    assert what_it_is(True, 7, None, primary) == "receives no WAL"
    assert what_it_is(False, 7, None, primary) == "primary"
    assert what_it_is(True, 8, 3, primary) == "another cluster"
    assert what_it_is(True, 7, 3, unknown) == "no primary to compare with"


class Noted:
    """A standby that is only noted."""

    def __init__(self, entry: Any) -> None:
        self.entry, self.name = dict(entry), config.name_of(entry)
        self.running, self.allowed, self.log = 0, True, list[str]()

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def allows(self, now: float) -> bool:
        return self.allowed


def test_the_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "standbys.json"
    make: Any = Noted
    made = standbys.Standbys(config.parse({"standbys_file": str(path)}), make)
    made.look()
    assert list(made) == []
    path.write_text(json.dumps([{"host": "a"}, {"host": "b"}]))
    made.look()
    first: list[Any] = list(made)
    assert [each.name for each in first] == ["a:5432", "b:5432"]
    for text in ("[{", '{"a": 1}', '[{"port": 1}]', '[{"host": "a"}, {"host": "a"}]'):
        path.write_text(text)
        made.look()
        assert made.bad_file
        assert list(made) == first
    path.write_text(json.dumps([{"host": "b"}, {"host": "c"}]))
    made.look()
    assert not made.bad_file
    assert [each.name for each in made] == ["b:5432", "c:5432"]
    assert next(iter(made)) is first[1]
    assert [each.log for each in first] == [["start", "stop"], ["start"]]
    first[0].running = 1
    assert first[0] in list(made.patrolled())
    first[0].running = 0
    assert first[0] not in list(made.patrolled())
    path.unlink()
    made.look()
    assert list(made) == []


def test_the_one_with_the_least_to_do_is_chosen_among_the_good_ones() -> None:
    make: Any = Noted
    made = standbys.Standbys(config.parse({"standbys": [{"host": "a"}, {"host": "b"}]}), make)
    assert made.choose() is None
    made.start()
    one, two = (each for each in made)
    assert {made.choose() for _ in range(4)} == {one, two}
    one.running = 3  # type: ignore[misc]
    assert [made.choose() for _ in range(4)] == [two] * 4
    two.allowed = False  # type: ignore[attr-defined]
    assert made.choose() is one
    one.allowed = False  # type: ignore[attr-defined]
    assert made.choose() is None


class Pool:
    """Synapse's private interface, as it was proved on."""

    def new_transaction(
        self, conn: Any, desc: Any, after_callbacks: Any, async_after_callbacks: Any,
        exception_callbacks: Any, func: Any, *args: Any, **kwargs: Any,
    ) -> None: ...


class Wrapper:
    def __init__(self, *, conn: Any, engine: Any, default_txn_name: Any, server_name: Any) -> None:
        ...


class Changed:
    def new_transaction(self, conn: Any, desc: Any) -> None: ...


def test_another_synapse_is_refused() -> None:
    assert selfcheck.interface_problems(Pool, Wrapper) == []
    found = selfcheck.interface_problems(Changed, Changed)
    assert len(found) == 2
    assert "DatabasePool.new_transaction of this Synapse takes ('self', 'conn', 'desc')" in found[0]
    assert "take the module out of the configuration" in found[0]
    assert selfcheck.release_problem("1.163.2") is None
    assert "unproved_release: warn" in str(selfcheck.release_problem("1.164.0"))


def test_an_engine_that_is_unsafe_is_refused() -> None:
    def database(**attributes: Any) -> Any:
        engine = {"module": psycopg2, "on_new_connection": 1,
                  "default_isolation_level": 2, "synchronous_commit": True}
        return SimpleNamespace(
            engine=SimpleNamespace(**{**engine, **attributes}),
            _database_config=SimpleNamespace(name="master"),
        )

    assert selfcheck.engine_problems(database()) == []
    (found,) = selfcheck.engine_problems(database(module=json))
    assert "database master is no PostgreSQL" in found
    (found,) = selfcheck.engine_problems(database(synchronous_commit=False))
    assert "synchronous_commit: false" in found


@pytest.mark.parametrize(("row", "word"), [
    (("off", 150000, False, True, "synapse"), "synchronous_commit is off for synapse"),
    (("local", 150000, False, True, "synapse"), "synchronous_commit is local"),
    (("on", 130005, False, True, "synapse"), "PostgreSQL 13"),
    (("on", 150000, True, True, "synapse"), "target_session_attrs"),
    (("on", 150000, False, False, "synapse"), "GRANT pg_read_all_stats TO synapse"),
])  # fmt: skip
def test_a_server_that_is_unsafe_is_refused(row: Any, word: str) -> None:
    assert selfcheck.server_problems("remote_apply", 150000, False, True, "synapse") == []
    (found,) = selfcheck.server_problems(*row)
    assert word in found
