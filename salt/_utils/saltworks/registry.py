"""The registry: what is known about machines that were admitted to join.

One record of the cache bank, machine to row; runners alone write it, under the mutex of
:mod:`saltworks.mutex`, and the external pillar reads it into the plan. The transitions
here are pure: a registry goes in, another comes out.

    admitted ─► joining ─► ready ─► draining ─► gone ─► joining (a generation later)
                   └──────────┴── lost ──────────►┘

``ready`` means that the machine may be given requests: it is healthy and has caught up. What
is not ``ready`` is in nobody's routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from .errors import Problem, Refused
from .membership import Declared

#: Name of the record in the bank.
RECORD = "registry"

State = Literal["joining", "ready", "draining", "gone"]

#: What each state may be followed by.
AFTER: Mapping[State, tuple[State, ...]] = {
    "joining": ("ready", "draining", "gone"),
    "ready": ("draining", "gone"),
    "draining": ("gone",),
    "gone": ("joining",),
}


@dataclass(frozen=True)
class Member:
    """A machine that was admitted.

    :param minion: its id.
    :param kind: the worker kind that it serves.
    :param address: IP address that the other machines reach it by; empty until it is known.
    :param state: see the module.
    :param since: when it came into that state, ISO 8601, UTC.
    :param generation: how many times it has joined.
    :param key: SHA-256 fingerprint of the public key that was admitted.
    :param processes: how many processes of Synapse it runs. Written down as it joins, so that
        the map says what is to be, and others are told of it like of any machine's coming.
    :param reads: whether its processes read from standbys of the database; as with those.
    """

    minion: str
    kind: str
    address: str
    state: State
    since: str
    generation: int
    key: str
    processes: int = 1
    reads: bool = False


Registry = Mapping[str, Member]


def of(rows: Mapping[str, Any]) -> dict[str, Member]:
    """The registry out of its record.

    :raises Refused: a row is not one of ours; nothing may be guessed about it.
    """
    registry = {}
    for name, row in sorted(rows.items()):
        try:
            member = Member(**row)
        except TypeError:
            member = None
        if member is None or member.minion != name or member.state not in get_args(State):
            what = f"the row {row!r} has not the fields {[f.name for f in fields(Member)]}"
            raise Refused("registry", [Problem(name, what, "use the release that wrote it")])
        registry[name] = member
    return registry


def rows(registry: Registry) -> dict[str, Any]:
    """The record of a registry."""
    return {name: asdict(member) for name, member in sorted(registry.items())}


def admitted(
    registry: Registry, minion: str, declared: Declared, key: str, now: str
) -> dict[str, Member]:
    """The registry once a machine with an accepted key joins; a member stays as it is.

    :param declared: what the map says of it.
    :param now: ISO 8601, UTC.
    :raises Refused: it is a member already, with another key.
    """
    known = registry.get(minion)
    if known is not None and known.state != "gone":
        if known.key != key:
            what = "is a member with another key"
            next_step = f"salt-run worker.drain {minion} first, then invite it anew"
            raise Refused("admission", [Problem(minion, what, next_step)])
        return dict(registry)
    generation = known.generation + 1 if known else 1
    member = Member(
        minion=minion,
        kind=declared.kind,
        address=declared.address,
        state="joining",
        since=now,
        generation=generation,
        key=key,
        processes=declared.processes,
        reads=declared.reads,
    )
    return {**registry, minion: member}


def moved(registry: Registry, minion: str, state: State, now: str) -> dict[str, Member]:
    """The registry once a member has come into a state; being there already changes nothing.

    :raises Refused: there is no such member, or that state does not follow its own.
    """
    member = known(registry, minion)
    if member.state == state:
        return dict(registry)
    if state not in AFTER[member.state]:
        may = " or ".join(AFTER[member.state])
        what = f"is {member.state}, which {state} does not follow"
        raise Refused("registry", [Problem(minion, what, f"only {may} does")])
    return {**registry, minion: replace(member, state=state, since=now)}


def located(registry: Registry, minion: str, address: str) -> dict[str, Member]:
    """The registry once a joining member's address is known.

    :raises Refused: another member that is not gone has the address.
    """
    member = known(registry, minion)
    for other in registry.values():
        if other.minion != minion and other.address == address and other.state != "gone":
            what = f"says it is at {address}, where {other.minion} is"
            raise Refused("registry", [Problem(minion, what, "give each its own address")])
    return {**registry, minion: replace(member, address=address)}


def forgotten(registry: Registry, minion: str) -> dict[str, Member]:
    """The registry without a member that is gone.

    :raises Refused: there is no such member, or it is not gone.
    """
    member = known(registry, minion)
    if member.state != "gone":
        what = f"is {member.state}"
        raise Refused("registry", [Problem(minion, what, f"salt-run worker.drain {minion} first")])
    return {name: row for name, row in registry.items() if name != minion}


def known(registry: Registry, minion: str) -> Member:
    """A member.

    :raises Refused: there is none of that id.
    """
    if minion not in registry:
        there = ", ".join(sorted(registry)) or "none"
        raise Refused("registry", [Problem(minion, "is no member", f"members: {there}")])
    return registry[minion]
