"""The witness must be able to fail: each way of losing, doubling and failing is counted."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from saltworks.matrix import STALE, Trouble

from tests.lab.client import ROOT
from tests.lab.witness import Witness, WitnessProcess, print_report, verdict
from tests.lab.witness_ledger import Ledger, Media
from tests.unit.matrix_fake import FakeHomeserver

Json = dict[str, Any]


def wait_for(there: Callable[[], bool], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        threading.Event().wait(0.02)


def once(method: str, part: str, fault: str, nth: int = 3) -> Callable[[str, str, int], str | None]:
    """Misbehaves at the nth different request whose path contains the part, once."""
    matching: list[str] = []
    lock = threading.Lock()

    def decide(asked: str, path: str, count: int) -> str | None:
        with lock:
            if asked != method or part not in path:
                return None
            matching.append(path)
            return fault if len(matching) == nth else None

    return decide


def chatted(home: FakeHomeserver, users: int = 2, messages: int = 30, **more: Any) -> Json:
    """What the witness reports of a short chat with the server."""
    options: Json = {"rate": 40, "drain": 1.5, "poll_seconds": 1, "errand_seconds": 0.05, **more}
    with Witness(home.url, home.users(users), **options) as witness:
        wait_for(lambda: len(home.events) >= messages, f"{messages} messages")
        wait_for(lambda: len(home.media) >= 2, "uploads")
        return witness.stop()


def test_a_good_server_gets_a_clean_report() -> None:
    with FakeHomeserver() as home:
        report = chatted(home, users=4)
    assert verdict(report, worst_wait=5) == []
    assert report["acknowledged"] == report["delivered"] >= 30
    assert report["to_device"]["acknowledged"] == report["to_device"]["delivered"] > 0
    assert report["media"]["uploaded"] == report["media"]["intact"] >= 2
    assert report["requests"]["total"] > report["requests"]["send"] >= report["acknowledged"]
    assert report["requests"]["receipt"] >= 1
    assert report["started"] < report["finished"]
    assert (report["failed_requests"], report["retries"], report["problems"]) == (0, {}, [])


def test_limited_timelines_are_filled_by_messages() -> None:
    with FakeHomeserver(page=2) as home:
        report = chatted(home, messages=60)
    assert verdict(report) == []


def test_an_acknowledged_message_that_is_gone_is_lost() -> None:
    with FakeHomeserver(once("PUT", "/send/", "lose")) as home:
        report = chatted(home)
    assert report["lost"] == 1
    assert report["delivered"] == report["acknowledged"] - 1
    assert report["lost_messages"][0]["in_history"] is False
    assert any("outstanding" in problem for problem in report["problems"])


def test_a_message_that_one_member_is_never_shown_is_lost() -> None:
    with FakeHomeserver(once("PUT", "/send/", "hide"), hidden_from="@u1:fake") as home:
        report = chatted(home)
    assert report["lost"] == 1
    assert report["lost_messages"][0]["in_history"] is True
    assert report["lost_messages"][0]["not_shown_to"] == ["@u1:fake"]


def test_a_message_under_two_ids_is_duplicated() -> None:
    with FakeHomeserver(once("PUT", "/send/", "twice")) as home:
        report = chatted(home)
    assert (report["duplicated"], report["lost"]) == (1, 0)
    assert [len(ids) for ids in report["duplicated_messages"].values()] == [2]


def test_a_to_device_message_shown_twice_is_duplicated() -> None:
    with FakeHomeserver(once("PUT", "/sendToDevice/", "twice")) as home:
        report = chatted(home)
    assert report["to_device"]["duplicated"] == 1
    assert "to-device duplicated: 1, must be 0" in verdict(report)


def test_spoiled_media_is_told() -> None:
    with FakeHomeserver(once("POST", "/upload", "spoil", 1)) as home:
        report = chatted(home)
    assert report["media"]["intact"] == report["media"]["uploaded"] - 1
    assert any("media intact" in line for line in verdict(report))


@pytest.mark.parametrize(
    ("method", "part", "retried"),
    [("PUT", "/send/", True), ("GET", "/profile/", True), ("POST", "/receipt/", False)],
)
def test_a_502_is_a_failed_request_even_if_repeated(method: str, part: str, retried: bool) -> None:
    with FakeHomeserver(once(method, part, "502", 1)) as home:
        report = chatted(home)
    assert report["failed_requests"] == 1
    assert report["retries"] == ({"http_502": 1} if retried else {})
    assert (report["failures"][0]["method"], report["failures"][0]["status"]) == (method, 502)
    assert (report["lost"], report["duplicated"]) == (0, 0)


def test_a_cut_long_poll_is_a_failed_request() -> None:
    with FakeHomeserver(once("GET", "/sync", "502", 6)) as home:
        report = chatted(home)
    assert report["failed_requests"] == 1
    assert report["long_polls"]["cut"] == 1
    assert report["lost"] == 0


def test_a_slow_answer_is_the_worst_wait() -> None:
    with FakeHomeserver(once("PUT", "/send/", "slow")) as home:
        report = chatted(home)
    assert 0.6 <= report["worst_wait_seconds"] < 3
    assert "/send/" in report["worst_waits"][0]["path"]
    assert any("worst wait" in line for line in verdict(report, worst_wait=0.5))


def test_a_rate_limit_is_no_failed_request_but_is_not_let_pass() -> None:
    with FakeHomeserver(once("PUT", "/send/", "429")) as home:
        report = chatted(home)
    assert (report["failed_requests"], report["rate_limited"]) == (0, 1)
    assert verdict(report) == ["rate limited: 1, must be 0"]


def test_a_dead_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("next_batch")

    monkeypatch.setattr(Witness, "_take", broken)
    with FakeHomeserver() as home:
        report = chatted(home, users=1, messages=5)
    assert any("thread poll-0 died: KeyError" in problem for problem in report["problems"])
    assert report["lost"] == report["acknowledged"] > 0


def test_no_users_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one user"):
        Witness("http://x", [])


# --- the ledger alone ----------------------------------------------------------------------------


def trouble(cause: str, status: int = 0, retried: bool = True) -> Trouble:
    return Trouble("PUT", "/p", status, cause, "why", 1.0, 0.1, 1, retried)


def test_stale_connections_are_counted_apart() -> None:
    ledger = Ledger(["@a:b"])
    ledger.trouble(trouble(STALE))
    ledger.trouble(trouble("http_429", 429))
    ledger.trouble(trouble("reset"))
    ledger.trouble(trouble("http_404", 404, retried=False))
    report = ledger.report()
    assert (report["stale_connections"], report["rate_limited"]) == (1, 1)
    assert report["failed_requests"] == 2
    assert report["retries"] == {STALE: 1, "http_429": 1, "reset": 1}
    for line in ("stale connections: 1, must be 0", "rate limited: 1, must be 0"):
        assert line in verdict(report)


def test_a_poll_waits_only_for_what_is_beyond_its_timeout() -> None:
    ledger = Ledger(["@a:b"])
    ledger.polled(30, 0, 30.2, "/sync")
    assert ledger.report()["worst_wait_seconds"] == 0.2
    ledger.polled(30, 0, 12, "/sync", cut=True)
    ledger.reconnected(0, 3.5, "/sync")
    report = ledger.report()
    assert report["worst_wait_seconds"] == 3.5
    assert report["long_polls"] == {"total": 2, "timed_out": 1, "cut": 1}


def test_an_unread_history_leaves_nothing_proven() -> None:
    ledger = Ledger(["@a:b"])
    ledger.acknowledged("witness 1", "$1")
    ledger.shown("@a:b", "witness 1", "$1")
    assert ledger.outstanding() == 0
    assert ledger.report()["lost"] == 1


def test_a_message_sent_but_never_acknowledged_is_not_lost() -> None:
    ledger = Ledger(["@a:b"])
    ledger.unacknowledged("witness 1")
    report = ledger.report()
    assert (report["lost"], report["unacknowledged"]) == (0, 1)
    assert "saw nothing" in verdict(report)[0]


def test_worst_waits_are_kept_among_many() -> None:
    ledger = Ledger(["@a:b"])
    for number in range(2000):
        ledger.answered("send", "PUT", f"/{number}", 0, number % 997)
    report = ledger.report()
    assert [row["seconds"] for row in report["worst_waits"]] == [996, 996, 995, 995, 994]


def test_the_report_is_printed() -> None:
    ledger = Ledger(["@a:b"])
    ledger.trouble(trouble("http_502", 502))
    for _ in range(73):
        ledger.trouble(trouble(STALE))
    for _ in range(84):
        ledger.trouble(trouble("http_429", 429))
    ledger.answered("send", "PUT", "/x", 0, 1.25)
    ledger.uploaded(Media("mxc://a/b", "00"))
    ledger.problem("half of it [is] missing")
    said = io.StringIO()
    print_report(ledger.report(), "M1", Console(file=said, width=120))
    for part in ("M1", "failed requests", "http_502", "1.25", "0 of 1", "half of it [is] missing"):
        assert part in said.getvalue()
    assert re.search(r"stale connections\W+73\b", said.getvalue())
    assert re.search(r"rate limited\W+84\b", said.getvalue())


# --- the process ---------------------------------------------------------------------------------


@pytest.fixture
def seeded(tmp_path: Path) -> Callable[[FakeHomeserver], list[str]]:
    def options(home: FakeHomeserver) -> list[str]:
        seed = tmp_path / "seed.json"
        seed.write_text(json.dumps({"witness": home.users(2)}))
        return ["--url", home.url, "--seed", str(seed), "--rate", "40"]

    return options


def test_the_process_reports_when_terminated(
    tmp_path: Path, seeded: Callable[[FakeHomeserver], list[str]]
) -> None:
    with FakeHomeserver() as home:
        process = WitnessProcess(seeded(home), tmp_path / "r" / "m1.json", tmp_path / "log")
        process.start()
        wait_for(lambda: len(home.events) >= 10, "10 messages")
        report = process.stop()
    assert report["acknowledged"] >= 10
    assert (report["lost"], report["failed_requests"]) == (0, 0)


def test_a_process_that_cannot_begin_says_why(tmp_path: Path) -> None:
    options = ["--url", "http://127.0.0.1:1"]
    process = WitnessProcess(options, tmp_path / "m1.json", tmp_path / "log")
    with pytest.raises(RuntimeError, match="pass --seed with a `witness` list"):
        process.start()


@pytest.mark.parametrize("way", ["stdin", "file", "signal"])
def test_the_ways_to_stop_it(
    tmp_path: Path, seeded: Callable[[FakeHomeserver], list[str]], way: str
) -> None:
    out, stop = tmp_path / "out.json", tmp_path / "stop"
    with FakeHomeserver() as home:
        command = [sys.executable, "-m", "tests.lab.witness", *seeded(home)]
        command += ["--out", str(out), "--stop-file", str(stop), "--print"]
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if way == "stdin":
                process.stdin.write("stop\n")
                process.stdin.flush()
            elif way == "file":
                stop.touch()
            else:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert "acknowledged" in process.stdout.read()
    assert json.loads(out.read_text())["lost"] == 0
