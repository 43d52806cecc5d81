"""Which process a request goes to: for nginx's configuration, and as a function to ask.

Both come from the worker table and the plan's workers, and must agree: a test asks this module and
a real nginx about every request that Synapse knows.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

from .plan import endpoint
from .worker_table import MAIN, Balance, Endpoint, Group, Table, table
from .workers import Process, Workers

#: nginx keeps the state of an upstream's servers in shared memory: KiB for each, and at least.
ZONE_KIB, LEAST_ZONE_KIB = 1, 64

#: nginx counts connections of one sort in 16 bits.
MOST_CONNECTIONS = 65535

#: The localpart in a token of Synapse's own, base64; other tokens say nothing of their owner.
_SPEAKING_TOKEN = re.compile(r"syt_([A-Za-z0-9+/]+)_")
#: The room in a decoded path, an id or an alias.
_ROOM = re.compile(r"/(?:rooms|join|knock)/([^/]+)")
_ORIGIN = re.compile(r'X-Matrix .*?origin="?([^",]+)', re.I)
_BEARER = re.compile(r"bearer +(\S+)", re.I)


@dataclass(frozen=True)
class Request:
    """What routing looks at.

    :param method: of HTTP.
    :param uri: path and query as the client sent them.
    :param authorization: the header, empty when there is none.
    :param address: the client's.
    """

    method: str
    uri: str
    authorization: str = ""
    address: str = "192.0.2.1"


@dataclass(frozen=True)
class Routed:
    """Where a request goes.

    :param pool: name of the pool, or ``main``.
    :param servers: the processes of the pool; empty for main.
    :param balance: what keeps requests together; none for main.
    :param key: requests of the same key go to the same server.
    """

    pool: str
    servers: tuple[Process, ...] = ()
    balance: Balance = "none"
    key: str = ""


def route(
    request: Request,
    workers: Workers,
    owner: Callable[[str], str] = lambda token: "",
    known: Table | None = None,
) -> Routed:
    """Where a request goes.

    :param owner: base64 of the localpart of a token's owner, empty when that cannot be found out.
    """
    found = matching(request.method, request.uri, known or table())
    pool = workers.routes[found.group] if found else MAIN
    if found is None or pool == MAIN:
        return Routed(MAIN)
    return Routed(pool, workers.pools[pool], found.balance, _key(found.balance, request, owner))


def matching(method: str, uri: str, known: Table) -> Endpoint | None:
    """The first endpoint that a request fits, None when only main has it."""
    line = f"{method} {uri}"
    return next((row for pattern, row in _compiled(known) if pattern.match(line)), None)


@dataclass(frozen=True)
class Way:
    """How nginx treats requests of some endpoints.

    :param name: for locations and variables.
    :param asks: whether the owner of a token that does not say is looked up.
    :param polls: for how many seconds they may idle, 0 if they do not: cut, they are asked again
        without their waiting time.
    :param strict: whether only this pool can serve them.
    :param limit: at a time, 0 for no limit.
    """

    name: str
    asks: bool = False
    polls: int = 0
    strict: bool = False
    limit: int = 0

    def as_pillar(self) -> dict[str, Any]:
        return {
            "asks": self.asks,
            "polls": self.polls,
            "strict": self.strict,
            "limit": self.limit,
        }


def nginx(workers: Workers, known: Table | None = None) -> dict[str, Any]:
    """The pillar ``nginx:routing``; empty when everything goes to main.

    :returns: ``matches``, pairs of a pattern for ``METHOD URI`` and a route, in order; ``routes``,
        name to ``pool``, ``balance`` and ``way``; ``pools``, name to ``servers`` (process to
        address and port) and ``zone`` (KiB); ``ways``; ``servers``, address and port to process.
    """
    known = known or table()
    matches: list[list[str]] = []
    routes: dict[str, dict[str, str]] = {}
    ways: dict[str, Way] = {}
    for row in known.endpoints():
        pool = workers.routes[row.group]
        if pool == MAIN:
            continue
        way = _way(known.groups[row.group], row.balance, len(workers.pools[pool]))
        name = f"{row.group}/{row.balance}"
        ways[way.name] = way
        routes[name] = {"pool": pool, "balance": row.balance, "way": way.name}
        matches.append([row.pattern.removeprefix("^"), name])
    used = sorted({row["pool"] for row in routes.values()})
    if not used:
        return {}
    return {
        "matches": matches,
        "routes": routes,
        "pools": {name: _pool(workers.pools[name]) for name in used},
        "servers": {
            endpoint(row.address, row.port): row.name
            for name in used
            for row in workers.pools[name]
        },
        "ways": {name: way.as_pillar() for name, way in sorted(ways.items())},
    }


def _pool(servers: Sequence[Process]) -> dict[str, Any]:
    return {
        "servers": {row.name: endpoint(row.address, row.port) for row in servers},
        "zone": max(LEAST_ZONE_KIB, ZONE_KIB * len(servers)),
    }


def _way(group: Group, balance: Balance, servers: int) -> Way:
    asks = balance == "user"
    if group.poll_seconds or group.connections:
        return Way(
            name=group.name,
            asks=asks,
            polls=group.poll_seconds,
            limit=min(group.connections * servers, MOST_CONNECTIONS),
        )
    if group.strict:
        return Way(name="writer", asks=asks, strict=True)
    return Way(name="user" if asks else "any", asks=asks)


@functools.cache
def _compiled_once(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


def _compiled(known: Table) -> list[tuple[re.Pattern[str], Endpoint]]:
    rows = tuple(known.endpoints())
    return list(zip(_compiled_once(tuple(row.pattern for row in rows)), rows, strict=True))


def _key(balance: Balance, request: Request, owner: Callable[[str], str]) -> str:
    path, _, query = request.uri.partition("?")
    if balance == "uri":
        return request.uri
    if balance == "room":
        found = _ROOM.search(unquote(path))
        return found[1] if found else unquote(path)
    if balance == "origin":
        found = _ORIGIN.match(request.authorization)
        return found[1] if found else request.address
    if balance == "user":
        found = _BEARER.match(request.authorization)
        token = found[1] if found else (parse_qs(query).get("access_token") or [""])[0]
        spoken = _SPEAKING_TOKEN.match(token)
        return (spoken[1] if spoken else "") or owner(token) or token or request.address
    return ""
