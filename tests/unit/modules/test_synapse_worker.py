"""The module ``synapse_worker``: health, positions, drains and what the front's log shows."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

#: As Synapse 1.163.2 writes them.
METRICS = """\
# HELP synapse_storage_stream_current_position The stream's current position.
# TYPE synapse_storage_stream_current_position gauge
synapse_storage_stream_current_position{{server_name="x",stream_name="events"}} {events}
synapse_storage_stream_current_position{{server_name="x",stream_name="to_device"}} 7.0
synapse_replication_tcp_resource_total_connections{{server_name="x"}} {connections}
synapse_replication_tcp_command_queue{{name="x",stream_name="events"}} {queued}
synapse_replication_tcp_protocol_inbound_commands_total{{command="POSITION",name="x"}} {told}
synapse_replication_tcp_protocol_inbound_commands_total{{command="RDATA",name="x"}} 3.0
"""


class Process:
    """A process that answers as a worker does; ``state`` can be changed under way."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "healthy": True, "events": 40.0, "connections": 1.0, "queued": 0.0, "told": 5.0,
        }  # fmt: skip
        this = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                well = this.state["healthy"]
                text = METRICS.format(**this.state) if "metrics" in self.path else "OK"
                self.send_response(200 if well else 503)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def module() -> Any:
    return load("_modules", "synapse_worker")


def nobody() -> str:
    """A base URL where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_who_answers_and_who_does_not(module: Any, process: Process) -> None:
    silent = nobody()
    assert module.answering([process.url, silent]) == {process.url: True, silent: False}
    process.state["healthy"] = False
    assert module.answering([process.url], tries=1) == {process.url: False}


def test_healthy_is_several_times_in_a_row_and_bounded(module: Any, process: Process) -> None:
    assert module.healthy([process.url], times=3, interval=0.01) < 5
    process.state["healthy"] = False
    threading.Timer(0.3, lambda: process.state.update(healthy=True)).start()
    assert module.healthy([process.url], times=2, interval=0.05, timeout=20) >= 0.2
    with pytest.raises(CommandExecutionError, match=r"did not answer /health 3 times in a row"):
        module.healthy([nobody()], timeout=0.2)


def test_caught_up_is_as_far_as_main_was_and_subscribed(module: Any, process: Process) -> None:
    main = Process()
    try:
        found = module.positions(process.url)
        assert found == {"subscribed": True, "queued": 0, "streams": {"events": 40, "to_device": 7}}
        assert module.caught_up([process.url], main.url)["streams"] == 2
        for change, why in (
            ({"events": 39.0}, "is at 39 of 40 in events"),
            ({"queued": 2.0}, "has 2 commands to take up"),
            ({"connections": 0.0}, "hears of nothing"),
            ({"told": 0.0}, "hears of nothing"),
        ):
            before = dict(process.state)
            process.state.update(change)
            with pytest.raises(CommandExecutionError, match=why):
                module.caught_up([process.url], main.url, timeout=0.1)
            process.state.update(before)
        # Main goes on meanwhile: it is not run after.
        process.state["events"] = 39.0
        threading.Timer(0.3, lambda: process.state.update(events=40.0)).start()
        threading.Timer(0.3, lambda: main.state.update(events=99.0)).start()
        assert module.caught_up([process.url], main.url, timeout=20)["streams"] == 2
    finally:
        main.server.shutdown()
        main.server.server_close()


def test_who_says_nothing_is_not_caught_up_with(
    module: Any, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_get", lambda url, timeout: "# nothing")
    with pytest.raises(CommandExecutionError, match="says of no stream how far it is"):
        module.caught_up([process.url], process.url, timeout=0)


def test_a_drain_waits_for_who_is_connected_and_is_bounded(module: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert module.emptied([port], timeout=0)["left"] == 0
        with socket.create_connection(("127.0.0.1", port)):
            peer, _ = server.accept()
            assert module.connections([port]) == 1
            assert module.emptied([port], timeout=0.5)["left"] == 1
            threading.Timer(0.4, peer.close).start()
            begun = time.monotonic()
            done = module.emptied([port], timeout=20)
        assert (done["left"], time.monotonic() - begun < 10) == (0, True)


def test_what_does_not_stop_or_start_is_no_success(module: Any) -> None:
    runs = {"a": True, "b": False}
    module.__salt__.update(
        {
            "service.stop": lambda unit: True,
            "service.start": lambda unit: True,
            "service.status": runs.__getitem__,
        }
    )
    with pytest.raises(CommandExecutionError, match=r"^a did not stop"):
        module.stop(["a", "b"])
    with pytest.raises(CommandExecutionError, match=r"^b did not start"):
        module.start(["a", "b"])
    module.__opts__ = {"id": "here"}
    rows = {"a": ["a"], "b": ["b"]}
    for here in rows:
        module.__opts__["id"] = here
        ours, theirs = (module.start_here, module.stop_here)[:: 1 if runs[here] else -1]
        ours(rows)
        with pytest.raises(CommandExecutionError, match=f"^{here} did not"):
            theirs(rows)
    assert module.start(["a"]) == ["a"]
    assert module.stop(["b"]) == ["b"]


def test_of_many_machines_each_looks_at_its_own_ports(module: Any) -> None:
    module.__opts__ = {"id": "here"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            peer, _ = server.accept()
            threading.Timer(0.4, peer.close).start()
            done = module.emptied_here({"here": [port], "there": [1]})
    assert (done["left"], done["seconds"] >= 0.2) == (0, True)


LINE = '192.0.2.1 [2026-11-26T17:00:00+00:00] "GET /_matrix/client/v3/sync" {} 9 0.1 {} {} 0.1 {}\n'


def test_it_is_seen_serving_by_its_name_in_the_fronts_log(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "access.log"
    log.write_text(LINE.format(200, "198.19.0.2:8101", 200, "r0 sync-2-1"))
    asked: list[str] = []

    def ask(request: dict[str, str], number: int, *_: Any) -> None:
        asked.append(request["path"].replace("{n}", str(number)))
        status, name = {1: (502, "sync-2-1"), 2: (200, "sync-2-10"), 3: (401, "sync-2-1")}[number]
        with log.open("a") as out:
            out.write(LINE.format(status, "198.19.0.2:8101", status, f"r0 {name}"))

    monkeypatch.setattr(module, "_ask", ask)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    requests = [{"method": "GET", "path": "/sync?since=s{n}", "authorization": ""}]
    where = (str(log), "198.18.0.11", 443, "chat.lale.test")
    seen = module.served(requests, ["sync-2-1"], *where, timeout=20)
    assert seen == {"sync-2-1": {"request": "GET /_matrix/client/v3/sync", "status": "401"}}
    assert asked == ["/sync?since=s1", "/sync?since=s2", "/sync?since=s3"]
    monkeypatch.setattr(module, "_ask", lambda *_: None)
    with pytest.raises(CommandExecutionError, match="sync-2-1 answered none of"):
        module.served(requests, ["sync-2-1"], *where, timeout=0.05)


def test_who_asks_a_front_that_is_away_goes_on(module: Any) -> None:
    port = int(nobody().rpartition(":")[2])
    request = {"method": "GET", "path": "/", "authorization": ""}
    module._ask(request, 1, "127.0.0.1", port, "chat.lale.test")
