"""Reaches a port that only listens inside a machine, such as 127.0.0.1:8008 behind the nginx.

The admin API is not passed on by the front door, and should not be for the tests' sake. A socket
belongs to the network namespace it was made in, so a thread which enters the machine's namespace
(setns(2)) makes the connection there, and this end is handed on from a port of our own loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

CLONE_NEWNET = 0x40000000
CONNECT_SECONDS = 10


def connect_inside(pid: int, host: str, port: int) -> socket.socket:
    """A connection made in the network namespace of a process. Raises OSError."""
    result: list[socket.socket | OSError] = []

    def work() -> None:
        # Only this thread moves, and it ends at once.
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(namespace, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"setns to {pid}: {os.strerror(number)}; run it as root")
            finally:
                os.close(namespace)
            result.append(socket.create_connection((host, port), CONNECT_SECONDS))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_SECONDS)
    if not result:
        raise TimeoutError(f"no connection to {host}:{port} inside process {pid}")
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


@contextlib.contextmanager
def reached(url: str, pid: int | None) -> Iterator[str]:
    """An address from here for a plain `http://host:port` inside the machine of process `pid`.

    Without `pid` it is the address itself.
    """
    if pid is None:
        yield url
        return
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise ValueError(f"{url!r} is no http://host:port, which is what can be handed on")
    target = (parts.hostname, parts.port or 80)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=_serve, args=(listener, pid, target), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # Closing alone does not wake accept().
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(listener: socket.socket, pid: int, target: tuple[str, int]) -> None:
    while True:
        try:
            here, _ = listener.accept()
        except OSError:
            return
        try:
            there = connect_inside(pid, *target)
        except OSError:
            here.close()
            continue
        there.settimeout(None)
        for pair in ((here, there), (there, here)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
