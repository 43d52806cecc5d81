"""Stands in for workers: answers with its name, and does what a test wants of a process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from saltworks.workers import Process

OWNER_PATH = "/_synapse/client/saltworks/owner"

#: ``answer``; ``cut``: the request is read and the connection closed; ``hold``: no answer comes.
Mood = Literal["answer", "cut", "hold"]


@dataclass(frozen=True)
class Seen:
    """A request that a process has read."""

    name: str
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Workers:
    """Every process of a plan, each on its own loopback address.

    :param rows: the processes.
    """

    rows: Iterable[Process]
    moods: dict[str, Mood] = field(default_factory=dict)
    #: Token to its owner, as the plugin saltworks_owner says it.
    owners: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: dict[str, asyncio.Server] = {}
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        for row in self.rows:
            self.start(row.name)

    def start(self, name: str) -> None:
        """Have a process listen."""
        (row,) = [row for row in self.rows if row.name == name]

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(name, reader, writer)
            writer.close()

        self._servers[name] = self._do(
            asyncio.start_server(handle, row.address, row.port, backlog=512)
        )

    def stop(self, name: str) -> None:
        """Have it refuse connections."""

        async def close() -> None:
            self._servers.pop(name).close()

        self._do(close())

    def end(self) -> None:
        """Stop them all."""
        for name in list(self._servers):
            self.stop(name)

        async def cancel() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._do(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(15)

    async def _serve(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            key.lower(): value for key, _, value in (row.partition(": ") for row in head[1:] if row)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        line = head[0].removesuffix(" HTTP/1.1")
        if line == f"GET {OWNER_PATH}":
            self._own(headers["authorization"].removeprefix("Bearer "), writer)
            return
        self.seen.append(Seen(name, line, headers, body))
        mood = self.moods.get(name, "answer")
        if mood == "hold":
            await asyncio.sleep(60)
        if mood == "answer":
            writer.write(
                f"HTTP/1.1 200 OK\r\nx-by: {name}\r\ncontent-length: 2\r\n\r\n{{}}".encode()
            )

    def _own(self, token: str, writer: asyncio.StreamWriter) -> None:
        self.asked[token] += 1
        owner = self.owners.get(token)
        status = "200 OK" if owner else "401 Unauthorized"
        # As every answer of Synapse's has it.
        more = "cache-control: no-cache, no-store, must-revalidate\r\n"
        more += f"x-saltworks-owner: {owner}\r\n" if owner else ""
        writer.write(f"HTTP/1.1 {status}\r\n{more}content-length: 2\r\n\r\n{{}}".encode())
