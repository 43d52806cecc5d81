"""Loaded by ``python -m tests.lab test``: names of the lab resolve inside the test process.

The tests run in the lab's network namespace but keep the host's mount namespace (machines are
mounted in it), so the host's resolv.conf is not the lab's: names the lab serves are answered from
the file that its name server serves, always fresh.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from .lab import Lab

INSIDE = "SALTWORKS_INSIDE"
"""Set in the environment of a test process that runs in the namespace."""

_resolve = socket.getaddrinfo


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    return _resolve(Lab.load().network.names().get(name, host), *args, **kwargs)


def pytest_configure() -> None:
    """Called by pytest once it knows its options."""
    if os.environ.get(INSIDE):
        socket.getaddrinfo = _getaddrinfo
