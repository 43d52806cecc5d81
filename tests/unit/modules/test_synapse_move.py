"""Both ends of Synapse's move, with a systemd that only takes notes."""

from __future__ import annotations

import fcntl
import getpass
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


class Machine:
    """``synapse_move`` on a machine whose Synapse runs or not."""

    lock: str

    def __init__(self, runs: bool) -> None:
        self.runs = runs
        self.events: list[str] = []
        self.fails: set[str] = set()
        self.move: Any = load("_modules", "synapse_move", salt={
            "service.status": lambda unit: self.runs,
            "door.drain": lambda ports, timeout: self.note(f"drain {ports} {timeout:g}"),
            "transfer.pull": lambda **row: self.note(f"pull {row['source']}"),
            "homeserver.healthy": lambda url, timeout: self.note(f"healthy {url}"),
        })
        vars(self.move).update(subprocess=SimpleNamespace(run=self._run), LOCK=self.lock)

    def note(self, event: str) -> dict[str, float]:
        self.events.append(event)
        if event.split()[0] in self.fails:
            raise CommandExecutionError(f"{event} failed")
        return {"seconds": 0.5}

    def _run(self, argv: list[str], **more: Any) -> Any:
        self.events.append(" ".join(argv[1:]))
        failed = argv[1] in self.fails
        return SimpleNamespace(returncode=int(failed), stderr="no such unit" if failed else "")


@pytest.fixture(autouse=True)
def _locks_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "lock", str(tmp_path / "lock"), raising=False)


STOPPED = "disable --now synapse.service"
STARTED = "start synapse.service"


def execute(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT text FROM notes")]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    execute(path, "CREATE TABLE notes (text text); INSERT INTO notes VALUES ('kept');")
    return path


def test_requests_end_before_synapse_is_stopped_for_good() -> None:
    machine = Machine(runs=True)
    taken = machine.move.leave("synapse", [8008], drain_timeout=4)
    assert machine.events == ["drain [8008] 4", STOPPED]
    assert taken["drain"] == 0.5
    assert set(taken) == {"drain", "stop"}


def test_requests_that_do_not_end_stop_nothing(database: Path, tmp_path: Path) -> None:
    machine = Machine(runs=True)
    machine.fails = {"drain"}
    copy = {"source": str(database), "directory": str(tmp_path / "handover")}
    with pytest.raises(CommandExecutionError, match="drain"):
        machine.move.leave("synapse", [8008], sqlite=copy)
    assert machine.events == ["drain [8008] 5"]
    assert not (tmp_path / "handover").exists()


def test_leaving_twice_stops_what_is_stopped_and_waits_for_nobody() -> None:
    machine = Machine(runs=False)
    machine.move.leave("synapse", [8008])
    assert machine.events == [STOPPED]


def test_the_copy_is_made_after_the_stop_and_anew_each_time(
    database: Path, tmp_path: Path
) -> None:
    machine = Machine(runs=True)
    folder = tmp_path / "handover"
    sqlite = {"source": str(database), "directory": str(folder)}
    assert "copy" in machine.move.leave("synapse", [8008], sqlite=sqlite)
    assert folder.stat().st_mode & 0o777 == 0o700
    execute(database, "INSERT INTO notes VALUES ('later')")
    machine.move.leave("synapse", [8008], sqlite=sqlite)
    assert notes(folder / "homeserver.db") == ["kept", "later"]

    machine.fails = {"disable"}
    (folder / "homeserver.db").unlink()
    with pytest.raises(CommandExecutionError, match="no such unit"):
        machine.move.leave("synapse", [8008], sqlite=sqlite)
    assert not (folder / "homeserver.db").exists()


def test_arriving_fetches_all_then_starts_then_waits_for_an_answer() -> None:
    machine = Machine(runs=False)
    pulls = [{"source": "/media"}, {"source": "/handover"}]
    taken = machine.move.arrive("synapse", "http://s:8008", pulls)
    assert machine.events == ["pull /media", "pull /handover", STARTED, "healthy http://s:8008"]
    assert set(taken) == {"pull", "start", "answer"}


def test_a_synapse_that_runs_keeps_what_it_has(database: Path, tmp_path: Path) -> None:
    machine = Machine(runs=True)
    sqlite = {"directory": str(tmp_path / "none"), "destination": str(database), "user": "nobody"}
    machine.move.arrive("synapse", "http://s:8008", [{"source": "/media"}], sqlite=sqlite)
    assert machine.events == [STARTED, "healthy http://s:8008"]
    assert notes(database) == ["kept"]


@pytest.mark.parametrize("step", ["pull", "start", "healthy"])
def test_what_fails_on_arrival_is_the_last_thing_done(step: str) -> None:
    machine = Machine(runs=False)
    machine.fails = {step}
    with pytest.raises(CommandExecutionError):
        machine.move.arrive("synapse", "http://s:8008", [{"source": "/media"}])
    assert machine.events[-1].startswith(step)


def test_the_fetched_database_is_put_in_place_whole_and_its_owner_s_alone(
    database: Path, tmp_path: Path
) -> None:
    machine = Machine(runs=True)
    folder, place = tmp_path / "handover", tmp_path / "new.db"
    machine.move.leave(
        "synapse", [8008], sqlite={"source": str(database), "directory": str(folder)}
    )
    machine.runs = False
    # Of an earlier try that was killed: a hot journal would be rolled back into the new file.
    place.write_bytes(b"of an earlier try")
    for companion in ("-journal", "-wal", "-shm"):
        Path(f"{place}{companion}").write_bytes(b"stale")
    row = {"directory": str(folder), "destination": str(place), "user": getpass.getuser()}
    machine.move.arrive("synapse", "http://s:8008", [], sqlite=row)
    # Before it is opened: SQLite itself would remove a journal that it finds to be none.
    assert sorted(p.name for p in tmp_path.glob("new.db*")) == ["new.db"]
    assert notes(place) == ["kept"]
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.stat().st_uid == os.getuid()


def test_stopping_is_for_after_a_reboot_too() -> None:
    machine = Machine(runs=True)
    assert machine.move.stop("synapse") is True
    assert machine.events == [STOPPED]


def test_a_step_waits_for_one_whose_run_has_died() -> None:
    late, back = Machine(runs=False), Machine(runs=False)
    pulling, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def pull(**row: str) -> None:
        pulling.set()
        assert go_on.wait(20)

    def systemctl(argv: list[str], **more: Any) -> Any:
        order.append(" ".join(argv[1:]))
        return SimpleNamespace(returncode=0)

    late.move.__salt__["transfer.pull"] = pull
    for machine in (late, back):
        vars(machine.move)["subprocess"] = SimpleNamespace(run=systemctl)
    with ThreadPoolExecutor(2) as pool:
        arriving = pool.submit(late.move.arrive, "synapse", "http://s:8008", [{"source": "/m"}])
        assert pulling.wait(20)
        stopping = pool.submit(back.move.stop, "synapse")
        with pytest.raises(TimeoutError):
            stopping.result(0.5)
        go_on.set()
        arriving.result(20)
        stopping.result(20)
    # The other way round Synapse would run here, and where it went back to.
    assert order == [STARTED, STOPPED]


def test_a_step_that_never_ends_is_waited_for_no_longer() -> None:
    machine = Machine(runs=True)
    vars(machine.move)["LOCK_SECONDS"] = 0.2
    with Path(Machine.lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CommandExecutionError, match=r"another step.*saltutil\.running"):
            machine.move.stop("synapse")
    assert machine.events == []


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration in use, with an upcoming one beside it."""
    path = tmp_path / "homeserver.yaml"
    path.write_text("old")
    (tmp_path / "upcoming.yaml").write_text("new")
    return path


def test_a_configuration_is_taken_up_before_synapse_starts_and_put_back_once(
    config: Path,
) -> None:
    machine = Machine(runs=False)
    machine.fails = {"start"}
    for _ in range(2):
        with pytest.raises(CommandExecutionError, match=r"systemctl start synapse\.service failed"):
            machine.move.arrive("synapse", "http://s:8008", [], config=str(config))
        assert config.read_text() == "new"
    assert machine.move.put_back(str(config)) is True
    assert machine.move.put_back(str(config)) is False
    assert config.read_text() == "old"


def test_without_an_upcoming_configuration_nothing_is_started_or_put_back(config: Path) -> None:
    machine = Machine(runs=False)
    (config.parent / "upcoming.yaml").unlink()
    with pytest.raises(CommandExecutionError, match=r"apply synapse\.prepared to this machine"):
        machine.move.arrive("synapse", "http://s:8008", [], config=str(config))
    assert machine.events == []
    assert machine.move.put_back(str(config)) is False
    assert config.read_text() == "old"
