"""No request is lost or refused while what is behind the front door comes and goes."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from tests.process.front_door import Client, FrontDoor, wait_for
from tests.render import trees
from tests.render.conftest import nginx_binary, renderer
from tests.render.webserver import make_certificate

__all__ = ["nginx_binary", "renderer"]

SYNC = "/_matrix/client/v3/sync"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key, as PEM."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def front(
    nginx_binary: Path, renderer: trees.Renderer, certificate: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FrontDoor]:
    """An open door with the backend ``found`` behind it."""
    folder = Path(tempfile.mkdtemp(prefix="saltworks-door-"))
    folder.chmod(0o755)
    made = FrontDoor(
        folder, nginx_binary, renderer, certificate,
        lambda tools: monkeypatch.setenv("PATH", tools, prepend=":"),
    )
    try:
        made.begin()
        yield made
    finally:
        made.end()


def test_another_backend_takes_over_and_no_client_notices(front: FrontDoor) -> None:
    clients = [
        Client(front, f"{name}{index}", method, path, keep)
        for name, method, path, keep in (
            ("get", "GET", "/_matrix/get", True), ("new", "GET", "/_matrix/get", False),
            ("post", "POST", "/_matrix/post", True), ("slow", "POST", "/_matrix/slow", False),
            ("put", "PUT", "/_matrix/slow", True), ("sync", "GET", SYNC, True),
        )
        for index in range(2)
    ]
    for client in clients:
        client.start()
    wait_for("the first requests", lambda: all(len(client.sent) for client in clients))
    # Longer than a long poll here, so that no connection is idle when nginx reloads.
    front.close(notice=3.5)
    front.door.drain(front.ports["found"][0], timeout=5)
    front.kill("found")
    front.start("synapse")
    front.door.open_("synapse")
    before = {client: len(client.sent) for client in clients}
    wait_for("more of each", lambda: all(len(c.sent) > before[c] + 1 for c in clients))
    for client in clients:
        client.ended.set()
    for client in clients:
        client.join(15)
    assert [failure for client in clients for failure in client.failed] == []
    for client in clients:
        if client.method == "POST":
            twice = [path for path in client.sent if front.did("POST", path) != 1]
            assert twice == [], "a POST was done not exactly once"
        assert client.worst < (8 if "/sync" in client.path else 5)


def test_request_in_flight_ends_before_the_drain_does(front: FrontDoor) -> None:
    status: list[int] = []
    sender = threading.Thread(
        target=lambda: status.append(front.request("POST", "/_matrix/slow/one", b"x"))
    )
    sender.start()
    wait_for("the request", lambda: bool(front.door.established([front.ports["found"][0]])))
    front.close(notice=0)
    done = front.door.drain(front.ports["found"][0], timeout=5)
    assert done["waited_for"] == 1
    assert front.did("POST", "/_matrix/slow/one") == 1
    front.kill("found")
    sender.join(5)
    assert status == [200]


SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


@pytest.mark.parametrize(
    ("method", "asked", "again"),
    [
        ("GET", f"{SYNC}?filter=%7B%22a%22%3A1%7D&timeout=30000&since=s1_2", None),
        ("GET", f"{SYNC}?timeout=30000", f"{SYNC}?timeout=0"),
        ("GET", f"{SYNC}?set_timeout=7&since=s1", f"{SYNC}?set_timeout=7&since=s1"),
        ("POST", f"{SLIDING}?pos=4&timeout=30000", f"{SLIDING}?pos=4&timeout=0"),
    ],
)
def test_long_poll_that_is_cut_is_asked_again_without_its_waiting_time(
    front: FrontDoor, method: str, asked: str, again: str | None
) -> None:
    status: list[int] = []
    body = b"{}" if method == "POST" else None
    poller = threading.Thread(target=lambda: status.append(front.request(method, asked, body)))
    poller.start()
    wait_for("the poll", lambda: bool(front.door.established([front.ports["found"][1]])))
    front.close(notice=0)
    assert front.door.drain(front.ports["found"][0], timeout=2)["waited_for"] == 0
    front.kill("found")
    front.start("synapse")
    front.door.open_("synapse")
    poller.join(15)
    assert status == [200]
    # The rest of the query arrives as it was sent, byte by byte.
    assert front.did(method, again or asked.replace("timeout=30000", "timeout=0")) == 1


def test_window_given_up_leaves_everything_as_it_was(front: FrontDoor) -> None:
    status: list[int] = []
    sender = threading.Thread(
        target=lambda: status.append(front.request("POST", "/_matrix/slow/one", b"x"))
    )
    sender.start()
    wait_for("the request", lambda: bool(front.door.established([front.ports["found"][0]])))
    front.close(notice=0)
    with pytest.raises(CommandExecutionError, match="1 requests still in flight"):
        front.door.drain(front.ports["found"][0], timeout=0.2)
    front.door.open_("found")
    sender.join(5)
    assert status == [200]
    assert front.request("GET", "/_matrix/get") == 200


def test_requests_wait_while_the_door_is_closed(front: FrontDoor) -> None:
    front.close(notice=0)
    status: list[int] = []
    senders = [
        threading.Thread(
            target=lambda i=i: status.append(
                front.request("POST", f"/_matrix/post/{i}", b"x")
            )
        )
        for i in range(50)
    ]
    for sender in senders:
        sender.start()
    begun = time.monotonic()
    wait_for("held requests", lambda: time.monotonic() - begun > 0.5)
    assert status == []
    front.door.open_("found")
    for sender in senders:
        sender.join(10)
    assert status == [200] * 50
    assert all(front.did("POST", f"/_matrix/post/{i}") == 1 for i in range(50))


@pytest.mark.skipif(os.getuid() != 0, reason="rules of the packet filter are root's")
def test_fence_keeps_nginx_from_a_drained_backend(front: FrontDoor) -> None:
    port = front.ports["found"][0]

    def reached_by(user: str) -> bool:
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        done = subprocess.run(
            ["/usr/bin/python3", "-c", program], user=user, capture_output=True, timeout=20,
            check=False,
        )
        return done.returncode == 0

    assert reached_by("nobody")
    front.close(notice=0)
    # Health checks are not nginx, so they go on.
    assert (reached_by("nobody"), reached_by("root")) == (False, True)
    front.door.open_("found")
    assert reached_by("nobody")
