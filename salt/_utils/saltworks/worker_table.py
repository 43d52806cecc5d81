"""The worker table (``workers.yaml``), read, checked and typed.

Kinds are what machines of the role ``worker`` have; streams are what their processes write. What
serves requests is a :class:`Group`: the processes of a kind, or the writers of a stream.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from .errors import Problem, Refused

PATH = Path(__file__).with_name("workers.yaml")

#: The process that is there without any worker; every fallback ends with it.
MAIN = "main"

Balance = Literal["user", "room", "origin", "uri", "none"]
Holders = Literal["one", "spread", "many"]
Restarts = Literal["all", "duty", "none"]

METHODS = ("GET", "PUT", "POST", "DELETE", "OPTIONS")
RESOURCES = ("client", "federation", "media")
DEFAULT_RESOURCES = ("client", "federation")

_PLACEHOLDER = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Endpoint:
    """Requests of one shape.

    :param group: name of the :class:`Group` that serves them.
    :param balance: what keeps them together.
    :param methods: HTTP methods.
    :param pattern: a regular expression, for Python and PCRE, at whose start ``METHOD URI`` of
        such a request matches; the URI as the client sent it.
    """

    group: str
    balance: Balance
    methods: tuple[str, ...]
    pattern: str


@dataclass(frozen=True)
class Group:
    """What endpoints are served by: a kind, or the writers of a stream.

    :param name: of the kind, or of the stream.
    :param fallback: the kind that serves them while there is none.
    :param strict: whether no other process can.
    :param poll_seconds: how long a request may idle; 0 if it does not.
    :param connections: requests at a time for each process; 0: no limit.
    :param endpoints: in the order in which they are tried.
    """

    name: str
    fallback: str
    strict: bool
    poll_seconds: int
    connections: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of worker.

    :param resources: of Synapse's HTTP listener, beside ``health``.
    :param duty: option of homeserver.yaml that names who does it, empty when it has none.
    :param holders: how many may have the duty at a time.
    :param restarts: who is told of a change of those who have it.
    :param standby_reads: whether its processes may read from standbys of the database.
    """

    name: str
    resources: tuple[str, ...]
    duty: str
    holders: Holders
    restarts: Restarts
    standby_reads: bool


@dataclass(frozen=True)
class Stream:
    """A stream that workers may write.

    :param writer: the kind whose processes write it.
    :param holders: how many may write it at a time.
    """

    name: str
    writer: str
    holders: Holders


@dataclass(frozen=True)
class Table:
    """The whole table, in the order of the file."""

    kinds: Mapping[str, Kind]
    streams: Mapping[str, Stream]
    groups: Mapping[str, Group]

    def endpoints(self) -> Iterator[Endpoint]:
        """Every endpoint, in the order in which they are tried."""
        for group in self.groups.values():
            yield from group.endpoints


@functools.cache
def table() -> Table:
    """The project's own table.

    :raises Refused: it is not sound; with everything that is wrong with it.
    """
    return load(yaml.safe_load(PATH.read_text(encoding="utf-8")))


def load(data: Mapping[str, Any]) -> Table:
    """A table out of the file's content.

    :raises Refused: with everything that is wrong with it.
    """
    wrong = list(problems(data))
    if wrong:
        raise Refused("worker table", wrong)
    prefixes = data["prefixes"]
    kinds = {
        name: Kind(
            name=name,
            resources=tuple(row.get("resources", DEFAULT_RESOURCES)),
            duty=row.get("duty", ""),
            holders=row.get("holders", "many"),
            standby_reads=row.get("standby_reads", False),
            restarts=row["restarts"],
        )
        for name, row in data["kinds"].items()
    }
    streams = {
        name: Stream(name, row["writer"], row["holders"]) for name, row in data["streams"].items()
    }
    groups = {
        name: Group(
            name=name,
            fallback=row.get("fallback", MAIN),
            strict=row.get("strict", False),
            poll_seconds=row.get("poll_seconds", 0),
            connections=row.get("connections", 0),
            endpoints=tuple(_endpoints(name, row, prefixes)),
        )
        for name, row in {**data["streams"], **data["kinds"]}.items()
    }
    return Table(kinds, streams, groups)


def problems(data: Any) -> Iterator[Problem]:
    """Everything wrong with the file's content."""
    step = f"correct {PATH.name}"
    if not isinstance(data, Mapping) or set(data) != {"prefixes", "streams", "kinds"}:
        yield Problem("worker table", "has not the parts prefixes, streams and kinds", step)
        return
    for section, allowed in (("streams", _STREAM_KEYS), ("kinds", _KIND_KEYS)):
        for name, row in data[section].items():
            place = f"{section}.{name}"
            for key in sorted(set(row) - set(allowed)):
                yield Problem(place, f"has the unknown key {key}", step)
            for key, values in allowed.items():
                if key not in row and key in _REQUIRED[section]:
                    yield Problem(place, f"has no {key}", step)
                if values and key in row and row[key] not in values:
                    yield Problem(place, f"{key} is {row[key]!r}, not one of {values}", step)
            if row.get("endpoints") and "balance" not in row:
                yield Problem(place, "has endpoints and no balance", step)
            if row.get("holders") == "one" and section == "kinds" and "duty" not in row:
                yield Problem(place, "has holders and no duty", step)
            if unknown := set(row.get("resources", ())) - set(RESOURCES):
                yield Problem(place, f"has unknown resources {sorted(unknown)}", step)
            yield from _endpoint_problems(place, row, data["prefixes"], step)
    for name, row in data["streams"].items():
        if row.get("writer") not in data["kinds"]:
            yield Problem(f"streams.{name}", f"writer {row.get('writer')!r} is no kind", step)
        if row.get("restarts") != "all":
            yield Problem(f"streams.{name}", "every process must know who writes a stream", step)
    writers = {row.get("writer") for row in data["streams"].values()}
    for name, row in data["kinds"].items():
        follows = "all" if name in writers else "duty" if "duty" in row else "none"
        if row.get("restarts") != follows:
            what = f"restarts is {row.get('restarts')!r}; by its streams and duty it is {follows}"
            yield Problem(f"kinds.{name}", what, step)
        if row.get("standby_reads") and follows != "none":
            yield Problem(f"kinds.{name}", "writes, and has standby_reads", step)
        yield from _fallback_problems(name, data["kinds"], step)


_BALANCES, _HOLDERS = get_args(Balance), get_args(Holders)
_STREAM_KEYS: Mapping[str, tuple[Any, ...]] = {
    "writer": (),
    "holders": _HOLDERS,
    "strict": (True, False),
    "balance": _BALANCES,
    "restarts": get_args(Restarts),
    "endpoints": (),
}
_KIND_KEYS: Mapping[str, tuple[Any, ...]] = {
    "balance": _BALANCES,
    "fallback": (),
    "poll_seconds": (),
    "connections": (),
    "resources": (),
    "duty": (),
    "holders": _HOLDERS,
    "restarts": get_args(Restarts),
    "endpoints": (),
    "endpoints_by": (),
    "standby_reads": (True, False),
}
_REQUIRED = {"streams": ("writer", "holders", "restarts"), "kinds": ("fallback", "restarts")}


def _rows(row: Mapping[str, Any]) -> Iterator[tuple[Balance, str]]:
    for text in row.get("endpoints", ()):
        yield row.get("balance", "none"), text
    for balance, texts in row.get("endpoints_by", {}).items():
        for text in texts:
            yield balance, text


def _endpoints(
    name: str, row: Mapping[str, Any], prefixes: Mapping[str, str]
) -> Iterator[Endpoint]:
    for balance, text in _rows(row):
        methods, pattern = _parsed(text, prefixes)
        yield Endpoint(name, balance, methods, pattern)


def _parsed(text: str, prefixes: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """Methods and pattern of an endpoint as it is written.

    :raises ValueError: it is no such text; says why.
    """
    words, _, target = text.partition(" ")
    methods = tuple(words.split(","))
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"unknown methods {sorted(unknown)}")
    if unknown_prefix := set(_PLACEHOLDER.findall(target)) - set(prefixes):
        raise ValueError(f"unknown prefixes {sorted(unknown_prefix)}")
    # A question mark of the expression follows what it makes optional; the query's follows a word.
    path, query = target, ""
    if split := re.search(r"(?<=\w)\?(?=\()", target):
        path, query = target[: split.start()], target[split.end() :]
    path = _PLACEHOLDER.sub(lambda match: prefixes[match[1]], path)
    if not path.startswith("/"):
        raise ValueError("the path does not begin with /")
    path = path.replace("[^/]", "[^/?]").replace(".*", "[^?]*")
    allowed = "|".join(f"{method}|HEAD" if method == "GET" else method for method in methods)
    pattern = rf"^({allowed}) {path}(\?|$)" + (f"{query}$" if query else "")
    re.compile(pattern)
    return methods, pattern


def _endpoint_problems(
    place: str, row: Mapping[str, Any], prefixes: Mapping[str, str], step: str
) -> Iterator[Problem]:
    for balance, text in _rows(row):
        if balance not in _BALANCES:
            yield Problem(place, f"balance {balance!r} is not one of {_BALANCES}", step)
        try:
            _parsed(text, prefixes)
        except (ValueError, re.error) as error:
            yield Problem(place, f"endpoint {text!r}: {error}", step)


def _fallback_problems(
    name: str, kinds: Mapping[str, Mapping[str, Any]], step: str
) -> Iterator[Problem]:
    seen, at = [name], str(kinds[name].get("fallback"))
    while at != MAIN:
        if at not in kinds or at in seen:
            yield Problem(f"kinds.{name}", f"fallback {at!r} does not lead to {MAIN}", step)
            return
        missing = _resources(kinds[name]) - _resources(kinds[at])
        if kinds[name].get("endpoints") and missing:
            yield Problem(f"kinds.{name}", f"fallback {at} does not serve {sorted(missing)}", step)
        seen.append(at)
        at = str(kinds[at].get("fallback"))


def _resources(row: Mapping[str, Any]) -> set[str]:
    return set(row.get("resources", DEFAULT_RESOURCES))
