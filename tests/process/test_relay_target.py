"""A relay's target as the real systemd-socket-proxyd reads it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from saltworks import plan

from tests.render.stages import MAP

PROXYD = "/usr/lib/systemd/systemd-socket-proxyd"


@contextlib.contextmanager
def greeter(host: str) -> Iterator[int]:
    """A server that says hello to one client; its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(10)

        def greet() -> None:
            with contextlib.suppress(OSError):
                client, _ = server.accept()
                client.sendall(b"hello")
                client.close()

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]


def through_proxyd(target: str) -> bytes:
    """What a client reads through a relay to ``target``."""
    # systemd hands sockets over from descriptor 3 on, see sd_listen_fds(3).
    script = 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$1" 3<&0'
    with socket.create_server(("127.0.0.1", 0)) as entrance:
        relay = subprocess.Popen(["sh", "-c", script, PROXYD, target], stdin=entrance.fileno())
        try:
            with socket.create_connection(entrance.getsockname(), timeout=10) as client:
                return client.recv(100)
        finally:
            relay.kill()
            relay.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_what_stays_behind_is_reached_by_ipv4_and_ipv6(host: str) -> None:
    with greeter("127.0.0.1" if host == "localhost" else host) as port:
        loopback = [{"path": "modules.0.config.uri", "host": host, "port": port}]
        cmap = {**MAP, "synapse": {**MAP["synapse"], "loopback": loopback}}
        rows = plan.relays(cmap, plan.Placement.recorded(cmap, {"managed": True}))
        assert through_proxyd(rows[f"loopback-{port}"]["target"]) == b"hello"


def test_an_address_in_brackets_is_not_understood() -> None:
    """Should systemd learn it one day, the plan may write both ends alike."""
    with greeter("::1") as port:
        assert through_proxyd(f"[::1]:{port}") == b""
