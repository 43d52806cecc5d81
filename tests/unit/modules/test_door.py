"""The front door's decisions: order of steps, nothing done twice, everything undone on failure."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


class Host:
    """A machine with a rendered door, whose systemd, nginx and nft only take notes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[str] = []
        self.active = {"saltworks-door.socket": "active", "saltworks-door-polls.socket": "active"}
        self.fenced = False
        self.reload_fails = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.door = load("_modules", "door", salt={
            "nginx_config.reload": self._reload,
            "nginx_config.notice": self._notice,
            "nginx_config.withdraw": lambda: self.note("withdraw"),
        })
        for name in ("LINK", "TARGETS", "ENVIRONMENT", "ENVIRONMENTS", "FLAG", "TMPFILES"):
            setattr(self.door, name, f"{root}{getattr(self.door, name)}")
        fakes: dict[str, Callable[..., Any]] = {
            "_active": lambda unit: self.active.get(unit, "inactive"),
            "_systemctl": lambda *args: self.note(" ".join(args)),
            "_raise_fence": self._raise_fence,
            "_lower_fence": self._lower_fence,
            "_fenced": lambda: self.fenced,
        }
        for name, fake in fakes.items():
            setattr(self.door, name, fake)
        self.render("closed", None)
        self.render("old", self.port)
        self.render("new", self.port)

    def note(self, event: str) -> None:
        self.events.append(event)

    def render(self, target: str, port: int | None) -> None:
        for folder in (self.door.TARGETS, self.door.ENVIRONMENTS):
            os.makedirs(folder, exist_ok=True)
        Path(self.door.TARGETS, f"{target}.conf").write_text("upstream", encoding="utf-8")
        if port is not None:
            Path(self.door.ENVIRONMENTS, f"{target}.env").write_text(
                f"DOOR_SYNAPSE=127.0.0.1:{port}\nDOOR_SYNAPSE_POLLS=127.0.0.1:{port}\n",
                encoding="utf-8",
            )

    def _notice(self, seconds: float) -> float:
        self.note(f"notice {seconds:g}")
        return 0.0

    @property
    def pointed(self) -> str:
        return Path(os.readlink(self.door.LINK)).stem

    @property
    def flag(self) -> bool:
        return os.path.exists(self.door.FLAG)

    def _reload(self, timeout: float) -> dict[str, Any]:
        self.note(f"reload {self.pointed}, flag {self.flag}")
        if self.reload_fails:
            raise CommandExecutionError("old workers still accept")
        return {"seconds": 0.1}

    def _raise_fence(self, backends: list[tuple[str, int]]) -> None:
        self.note(f"fence {sorted(set(backends))}")
        self.fenced = True

    def _lower_fence(self) -> None:
        self.note("unfence")
        self.fenced = False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A machine whose door is open to ``old``."""
    made = Host(tmp_path)
    # A failed reload is undone by a real systemctl; here there is none to be called.
    monkeypatch.setattr(made.door.subprocess, "run", lambda *args, **kwargs: made.note("undo"))
    assert made.door.first_target("old")
    return made


def test_closing_holds_first_and_fences_last(host: Host) -> None:
    done = host.door.close(notice=3)
    assert host.events == [
        "notice 3",
        "stop saltworks-door.service",
        "stop saltworks-door-polls.service",
        "reload closed, flag False",
        f"fence [('127.0.0.1', {host.port})]",
    ]
    assert done["changed"]
    assert done["was"] == "old"
    assert host.door.status()["state"] == "closed"


def test_closing_twice_does_nothing_more(host: Host) -> None:
    host.door.close()
    before = list(host.events)
    assert host.door.close() == {"changed": False, "seconds": 0.0, "was": None, "fenced": True}
    assert host.events == before


def test_closing_without_a_held_socket_is_refused(host: Host) -> None:
    host.active["saltworks-door-polls.socket"] = "failed"
    with pytest.raises(CommandExecutionError, match=r"door-polls\.socket is not listening"):
        host.door.close()
    assert (host.pointed, host.flag, host.events) == ("old", True, [])


def test_closing_that_fails_leaves_the_door_open(host: Host) -> None:
    host.reload_fails = True
    with pytest.raises(CommandExecutionError, match="old workers"):
        host.door.close()
    assert (host.pointed, host.flag, host.fenced) == ("old", True, False)
    assert host.events[-2:] == ["withdraw", "undo"]


def test_closing_waits_for_what_was_held_before_and_gives_up_in_time(host: Host) -> None:
    host.active["saltworks-door.service"] = "active"
    with pytest.raises(CommandExecutionError, match="still passes on requests"):
        host.door.close(timeout=0.1)
    assert (host.pointed, host.flag) == ("old", True)
    assert not any(event.startswith("stop") for event in host.events)


def test_closing_where_there_is_no_door_says_what_to_do(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.door.status()["state"] == "unset"
    with pytest.raises(CommandExecutionError, match="apply the formula nginx"):
        host.door.close()


def test_opening_lets_the_held_through_before_all_others(host: Host) -> None:
    host.door.close()
    host.events.clear()
    assert host.door.open_("new")["was"] == "closed"
    assert host.events == ["unfence", "reload new, flag True", "withdraw"]
    assert host.door.status() == {
        "state": "open", "target": "new", "flag": True, "fenced": False,
        "sockets": {"saltworks-door": "active", "saltworks-door-polls": "active"},
        "targets": ["new", "old"],
    }
    assert Path(os.readlink(host.door.ENVIRONMENT)).name == "new.env"


def test_opening_twice_does_nothing_more(host: Host) -> None:
    assert host.door.open_("old") == {"changed": False, "seconds": 0.0, "was": "old"}
    assert host.events == []


def test_opening_from_open_gives_notice(host: Host) -> None:
    host.door.open_("new", notice=2)
    assert host.events[0] == "notice 2"


def test_opening_to_nobody_keeps_it_closed(host: Host) -> None:
    host.door.close()
    host.listener.close()
    with pytest.raises(CommandExecutionError, match=r"new does not accept connections on 127"):
        host.door.open_("new", timeout=0.1)
    assert (host.pointed, host.flag, host.fenced) == ("closed", False, True)


def test_opening_to_an_unknown_target_names_those_there_are(host: Host) -> None:
    with pytest.raises(CommandExecutionError, match="only new, old"):
        host.door.open_("nwe")


def test_a_run_that_died_half_way_is_seen_and_finished(host: Host) -> None:
    host.door.close()
    Path(host.door.FLAG).touch()
    assert host.door.status()["state"] == "between"
    assert host.door.close()["changed"]
    assert host.door.status()["state"] == "closed"


def test_flag_comes_back_after_a_reboot_only_if_the_door_was_open(host: Host) -> None:
    assert host.door.FLAG in Path(host.door.TMPFILES).read_text(encoding="utf-8")
    host.door.close()
    assert not os.path.exists(host.door.TMPFILES)


def test_first_target_never_moves_a_door(host: Host) -> None:
    assert not host.door.first_target("new")
    assert host.pointed == "old"


def test_door_aimed_at_a_target_that_is_gone_is_unset(host: Host) -> None:
    Path(host.door.TARGETS, "old.conf").unlink()
    assert host.door.status()["state"] == "unset"


@pytest.fixture
def flight() -> Any:
    """A connection in flight to a local port: ``(port, client)``."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            with accepted:
                yield port, client


def test_drain_that_does_not_end_names_the_peer(flight: tuple[int, socket.socket]) -> None:
    port, client = flight
    begun = time.monotonic()
    with pytest.raises(CommandExecutionError, match=f"127.0.0.1:{client.getsockname()[1]}"):
        load("_modules", "door").drain(port, timeout=0.3)
    assert time.monotonic() - begun < 5


def test_drain_waits_for_the_last_request(flight: tuple[int, socket.socket]) -> None:
    port, client = flight
    threading.Timer(0.3, lambda: client.shutdown(socket.SHUT_RDWR)).start()
    done = load("_modules", "door").drain([port], timeout=5)
    assert done["waited_for"] == 1
    assert 0.2 < done["seconds"] < 4


def test_drain_wants_quiet_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    door = load("_modules", "door")
    looks = [["a:1"], [], ["b:2"], [], []]
    monkeypatch.setattr(door, "established", lambda ports: looks.pop(0))
    monkeypatch.setattr(door, "LOOK_SECONDS", 0)
    assert door.drain(8008)["waited_for"] == 1
    assert looks == []


def test_fence_names_nginx_and_the_places_only() -> None:
    rules = load("_modules", "door").fence_rules(33, [("127.0.0.1", 8008), ("::1", 8009)])
    assert "delete table inet saltworks_door" in rules
    lines = [line.strip() for line in rules.splitlines() if "reject" in line]
    assert len(lines) == 2
    assert all(line.startswith("meta skuid 33 ") for line in lines)
    assert "ip daddr 127.0.0.1 tcp dport 8008" in lines[0]
    assert "ip6 daddr ::1 tcp dport 8009" in lines[1]


def test_workers_behind_a_target_are_fenced_and_not_waited_for(host: Host) -> None:
    path = Path(host.door.ENVIRONMENTS, "old.env")
    host.door.first_target("old")
    path.write_text(f"{path.read_text()}FENCE_1=127.0.0.1:1\nFENCE_2=[::1]:2\n")
    seen: list[tuple[str, int]] = []
    vars(host.door)["_raise_fence"] = seen.extend
    host.door.close(fence=True)
    main = ("127.0.0.1", host.port)
    assert seen == [main, main, ("127.0.0.1", 1), ("::1", 2)]
    # Nobody listens at those two: one lost worker does not keep everybody out.
    assert host.door.open_("old", timeout=1)["changed"]
