"""The load's figures, and that its users see what a server does to them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bench import load, load_figures
from tests.bench.load_figures import GENERATOR, OTHERS, SYNAPSE, Profile, Seen, Sent
from tests.lab.driver import PROJECT
from tests.unit.matrix_fake import FakeHomeserver

MEMBERS = [[0, 1, 2], [1, 3]]


def test_everybody_is_in_one_busy_room_and_in_two_quiet_ones() -> None:
    members = Profile().members()
    assert [len(room) for room in members] == [8, 8, *[4] * 8]
    for user in range(16):
        mine = [number for number, room in enumerate(members) if user in room]
        assert (sum(n < 2 for n in mine), sum(n >= 2 for n in mine)) == (1, 2)


def test_four_messages_of_five_go_to_a_fifth_of_the_rooms() -> None:
    profile, chance = Profile(), random.Random(1)
    rooms = Counter(profile.room_for(n % 16, chance) for n in range(4000))
    assert 0.77 < (rooms[0] + rooms[1]) / 4000 < 0.83
    assert len(rooms) == 10


def test_what_is_measured_is_what_was_in_the_window() -> None:
    sent = {
        1: Sent(0, 0, 9.9, 10.1),  # sent before, answered in it
        2: Sent(0, 0, 10.0, 10.2),
        3: Sent(3, 1, 19.9, 20.4),  # sent in it, answered afterwards
    }
    seen = [
        Seen(1, 1, 10.3), Seen(2, 0, 10.1), Seen(2, 1, 10.5), Seen(2, 1, 11.0), Seen(3, 1, 20.9),
    ]  # fmt: skip
    found = load_figures.measured(sent, seen, MEMBERS, (10.0, 20.0))
    assert found["messages"] == 2
    assert found["latencies"] == [500.0, 1000.0]
    assert found["missing"] == 1, "user 2 was not shown the second"


@pytest.mark.parametrize(("share", "value"), [(50, 10), (95, 19), (100, 20), (1, 1)])
def test_percentiles(share: float, value: float) -> None:
    assert load_figures.percentile([*range(20, 0, -1)], share) == value


def test_cpu_is_told_by_process() -> None:
    before = {"synapse/synapse.service": 1.0, "proxy/nginx.service": 2.0}
    after = {
        "synapse/synapse.service": 4.0, "proxy/nginx.service": 2.5,
        "sync-1/synapse-worker@sync-1-1.service": 7.0, "sync-1/salt-minion.service": 0.5,
        "synapse/salt-minion.service": 0.5, "database/postgresql@15-main.service": 1.5,
    }  # fmt: skip
    assert load_figures.spent(before, after) == {
        SYNAPSE: 3.0, "nginx": 0.5, "Synapse, sync-1-1": 7.0, OTHERS: 1.0, "PostgreSQL": 1.5,
    }  # fmt: skip


def test_rounds_are_put_together() -> None:
    runs = [
        {"seconds": 10.0, "messages": count, "latencies": [value], "missing": 0,
         "troubles": {"http_502": 1}, "cpu": {SYNAPSE: 2.0, GENERATOR: 1.0}}
        for count, value in ((100, 5.0), (300, 7.0), (200, 6.0))
    ]  # fmt: skip
    found = load_figures.pooled(runs)
    assert (found.rate, found.p50, found.p95, found.troubles) == (20, 6, 7, 3)
    other = load_figures.pooled([{**runs[0], "cpu": {"nginx": 1.0}}])
    assert load_figures.cpu_rows([found, other]) == [
        [SYNAPSE, "6.0", "10.0", "", ""],
        ["nginx", "", "", "1.0", "10.0"],
        [OTHERS, "", "", "", ""],
        [GENERATOR, "3.0", "5.0", "", ""],
    ]


def test_users_write_and_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowd, out = tmp_path / "crowd.json", tmp_path / "run.json"
    with FakeHomeserver() as home:
        # As it is run, in a process of its own.
        command = [sys.executable, "-m", "tests.bench.load", "prepare", "--url", home.url]
        subprocess.run([*command, "--out", str(crowd)], cwd=PROJECT, check=True, timeout=60)
        words = ["run", "--url", home.url, "--crowd", str(crowd), "--out", str(out)]
        words += ["--senders", "2", "--rate", "40", "--warm", "0.2", "--seconds", "1"]
        assert load.main(words) == 0
    report = json.loads(out.read_text())
    assert capsys.readouterr().out.split() == ["begin", "end"]
    # As many as a busy machine lets through, but never above the rate.
    assert 0 < report["messages"] <= 45
    assert report["missing"] == 0
    assert len(report["latencies"]) >= 3 * report["messages"] * 0.9
    assert report["troubles"] == {}
    assert report["cpu"][GENERATOR] > 0


def test_what_is_hidden_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd, out = tmp_path / "crowd.json", tmp_path / "run.json"
    monkeypatch.setattr(load, "LATE_SECONDS", 0.5)

    def hides(method: str, path: str, count: int) -> str | None:
        return "hide" if "/send/" in path else None

    with FakeHomeserver(hides) as home:
        assert load.main(["prepare", "--url", home.url, "--out", str(crowd)]) == 0
        home.hidden_from = json.loads(crowd.read_text())["users"][0]["user_id"]
        words = ["run", "--url", home.url, "--crowd", str(crowd), "--out", str(out)]
        assert load.main([*words, "--senders", "2", "--warm", "0", "--seconds", "0.5"]) == 0
    assert json.loads(out.read_text())["missing"] > 0


def test_a_server_that_does_not_serve_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = tmp_path / "crowd.json"
    user = {"user_id": "@a:b", "access_token": "a"}
    crowd.write_text(json.dumps({"users": [user] * 16, "rooms": ["!a"] * 10}))
    words = ["run", "--crowd", str(crowd), "--out", str(tmp_path / "run.json")]

    with FakeHomeserver() as home:
        # Answers, but with nothing that is a sync.
        assert load.main([*words, "--url", f"{home.url}/nowhere"]) == 3
    assert "run failed" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()
