"""What the formulas synapse and redis ask of their modules for workers."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


def units(folder: Path, events: list[str], test: bool = False) -> Any:
    """The state unit_set over a folder with a template, two of its instances, and another's."""
    wanted = folder / "multi-user.target.wants"
    wanted.mkdir()
    (folder / "synapse-worker@.service").touch()
    for name in ("synapse-worker@a-1.service", "synapse-worker@a-2.service", "other@x.service"):
        (wanted / name).symlink_to(folder / "synapse-worker@.service")

    def disable(unit: str) -> None:
        events.append(f"disable {unit}")
        (wanted / unit).unlink()

    state: Any = load("_states", "unit_set", test=test, salt={
        "service.stop": lambda unit: events.append(f"stop {unit}"),
        "service.disable": disable,
        "service.systemctl_reload": lambda: events.append("daemon-reload"),
    })
    state.UNIT_DIR, state.WANTED_DIR = str(folder), str(wanted)
    return state


STAY = ["synapse-worker@.service", "synapse-worker@a-1.service"]


def test_an_instance_that_is_not_named_is_stopped_and_the_template_stays(tmp_path: Path) -> None:
    events: list[str] = []
    state = units(tmp_path, events)
    done = state.only("synapse-worker@", STAY)
    gone = "synapse-worker@a-2.service"
    assert events == [f"stop {gone}", f"disable {gone}", "daemon-reload"]
    assert done["changes"] == {gone: "removed"}
    assert (tmp_path / "synapse-worker@.service").exists()
    assert state.only("synapse-worker@", STAY)["changes"] == {}


def test_without_any_instance_the_template_goes_and_is_not_stopped(tmp_path: Path) -> None:
    events: list[str] = []
    units(tmp_path, events).only("synapse-worker@", [])
    assert not (tmp_path / "synapse-worker@.service").exists()
    assert "stop synapse-worker@.service" not in events
    assert events.count("daemon-reload") == 1


def test_instances_stay_in_test_mode(tmp_path: Path) -> None:
    events: list[str] = []
    done = units(tmp_path, events, test=True).only("synapse-worker@", STAY)
    assert (done["result"], events) == (None, [])


class Worker(http.server.BaseHTTPRequestHandler):
    """Answers /health and nothing else, as a worker without other resources does."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_worker_serves_when_it_answers_health_and_says_no_version(url: str) -> None:
    module = load("_modules", "homeserver")
    assert module.serves(url, 5)["seconds"] < 5
    with pytest.raises(CommandExecutionError, match="404"):
        module.healthy(url, 0.2)
    with pytest.raises(CommandExecutionError, match="journalctl -u 'synapse-worker"):
        module.serves("http://127.0.0.1:1", 0.2)


def away(*args: Any, **kwargs: Any) -> Any:
    raise CommandExecutionError("no such luck")


@pytest.mark.parametrize(("state", "function", "arguments"), [
    ("homeserver", "homeserver.serves", {"name": "http://x", "timeout": 1}),
    ("redis_bus", "redis_bus.ping", {
        "name": "redis", "address": "a", "port": 1, "user": "u", "password_pillar": "p",
        "authority": "f",
    }),
])
def test_waiting_is_no_change_and_not_done_in_test_mode(
    state: str, function: str, arguments: dict[str, Any]
) -> None:
    pillar = {"pillar.get": lambda *args, **kwargs: "secret"}
    answers = load("_states", state, salt={**pillar, function: lambda *args: {"seconds": 0.1}})
    done = answers.serving(**arguments)
    assert (done["result"], done["changes"]) == (True, {})
    done = load("_states", state, salt={**pillar, function: away}).serving(**arguments)
    assert (done["result"], done["comment"]) == (False, "no such luck")
    done = load("_states", state, test=True, salt={function: away}).serving(**arguments)
    assert (done["result"], done["changes"]) == (True, {})


def test_a_worker_s_file_is_read_after_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("_modules", "synapse_release")
    (tmp_path / "1.163.2/bin").mkdir(parents=True)
    (tmp_path / "1.163.2/bin/python").touch()
    seen: list[list[str]] = []
    monkeypatch.setattr(module, "RELEASES", str(tmp_path))
    monkeypatch.setattr(module, "_run", lambda command, *args, **kwargs: seen.append(command))
    module.check_config("1.163.2", "/w.yaml", "synapse", base="/h.yaml")
    module.check_config("1.163.2", "/h.yaml", "synapse")
    assert seen[0][-4:] == ["-c", "/h.yaml", "-c", "/w.yaml"]
    assert seen[1][-3:] == ["synapse.config", "-c", "/h.yaml"]
