"""What a connection pooler does to a session's beginning: it names a server process of its own."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

#: The message BackendKeyData, of 12 bytes after its type.
KEY = b"K" + struct.pack("!I", 12)


@contextlib.contextmanager
def pooler(to: int) -> Iterator[int]:
    """Its local port; connections go to another one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_serve, args=(listening, to), daemon=True).start()
        yield int(listening.getsockname()[1])
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def _serve(listening: socket.socket, to: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", to))
            for here, there in ((client, server), (server, client)):
                threading.Thread(
                    target=_pass, args=(here, there, here is server), daemon=True).start()


def _pass(here: socket.socket, there: socket.socket, rewrite: bool) -> None:
    with contextlib.suppress(OSError):
        while data := here.recv(65536):
            if rewrite and KEY in data:
                at = data.index(KEY) + len(KEY)
                data = data[:at] + struct.pack("!I", 1) + data[at + 4 :]
                rewrite = False
            there.sendall(data)
    for each in (here, there):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
