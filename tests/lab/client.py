"""The project's Matrix client, and what only tests need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from saltworks.matrix import CLIENT, MEDIA, Client, MatrixError, Trouble, quoted

ROOT = Path(__file__).resolve().parents[2]

__all__ = [
    "ADMIN",
    "CLIENT",
    "MEDIA",
    "ROOT",
    "UNSTABLE",
    "Client",
    "MatrixError",
    "Trouble",
    "answer_or_refusal",
    "each",
    "proven",
    "quoted",
]

ADMIN = "/_synapse/admin"
UNSTABLE = "/_matrix/client/unstable"

Item = TypeVar("Item")
Result = TypeVar("Result")


def proven(client: Client, method: str, path: str, body: dict[str, Any], password: str) -> Any:
    """Sends a request that wants the password again (user-interactive authentication)."""
    try:
        return client.request(method, path, body, expect=(401,))
    except MatrixError as error:
        if error.status != 401:
            raise
        session = getattr(error, "retry_session", None)
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": client.user_id},
        "password": password,
        "session": session,
    }
    return client.request(method, path, {**body, "auth": auth})


def answer_or_refusal(ask: Callable[[], Any]) -> Any:
    """What was answered, or `{"refused": status, "errcode": ...}` where the server said no.

    No answer at all, 429 and 5xx are raised: they are no property of the data.
    """
    try:
        return ask()
    except MatrixError as error:
        if error.status in (0, 429) or error.status >= 500:
            raise
        return {"refused": error.status, "errcode": error.errcode}


def each(work: Callable[[Item], Result], items: Iterable[Item], workers: int = 8) -> list[Result]:
    """The work done for all items in threads, results in order; the first failure is raised."""
    with ThreadPoolExecutor(workers) as pool, contextlib.ExitStack() as stack:
        futures = [pool.submit(work, item) for item in items]
        # A failure ends the run at once; what has not begun is not begun any more.
        stack.callback(lambda: [future.cancel() for future in futures])
        return [future.result() for future in futures]
