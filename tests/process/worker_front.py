"""A front door with workers behind it, which are stood in for."""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from saltworks import routing, worker_table, workers

from tests import cluster
from tests.process.front_door import FrontDoor
from tests.process.worker_stub import Workers
from tests.render import trees
from tests.render.webserver import make_certificate

TABLE = worker_table.table()


@pytest.fixture(scope="module")
def plan() -> workers.Workers:
    """Two machines of each kind, each on a loopback address of its own."""
    rows = cluster.members(dict.fromkeys(TABLE.kinds, 2))
    there = [replace(row, address=f"127.0.1.{n}") for n, row in enumerate(rows, 1)]
    return workers.of(cluster.placement(*there))


@pytest.fixture
def stub(plan: workers.Workers) -> Iterator[Workers]:
    """All its processes."""
    made = Workers(plan.processes.values())
    yield made
    made.end()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key, as PEM."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def front(
    nginx_binary: Path, renderer: trees.Renderer, certificate: tuple[str, str],
    plan: workers.Workers, stub: Workers, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[FrontDoor]:
    """An open front door with the routing, main behind it as ``found``.

    A parameter is the limit of each way that has one.
    """
    folder = Path(tempfile.mkdtemp(prefix="saltworks-routing-"))
    folder.chmod(0o755)
    found = routing.nginx(plan)
    for way in found["ways"].values():
        if way["limit"] and hasattr(request, "param"):
            way["limit"] = request.param
    made = FrontDoor(
        folder, nginx_binary, renderer, certificate,
        lambda tools: monkeypatch.setenv("PATH", tools, prepend=":"), found,
    )
    try:
        made.begin()
        yield made
    finally:
        made.end()


class Answer:
    """What a client got."""

    def __init__(
        self, front: FrontDoor, method: str, uri: str, headers: dict[str, str] | None = None,
    ) -> None:
        connection = front.connection()
        body = b"{}" if method in ("POST", "PUT") else None
        try:
            connection.request(method, uri, body, headers or {})
            answer: http.client.HTTPResponse = connection.getresponse()
            self.text = answer.read().decode()
            self.status = answer.status
            self.headers = answer.headers
            self.by = answer.headers.get("x-by", "main")
        finally:
            connection.close()
