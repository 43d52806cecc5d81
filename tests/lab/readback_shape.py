"""How answers of the client API are brought into a form that two read-backs share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tests.lab import people
from tests.lab.client import Client

Json = dict[str, Any]

PAGE = 400
# What moves by itself: ages, when somebody was last seen, positions in streams.
VOLATILE = frozenset(
    {
        "age",
        "last_seen_ts",
        "last_seen_ip",
        "last_seen_user_agent",
        "last_access_ts",
        "last_active_ago",
        "currently_active",
        "joined_local_devices",
    }
)

_PAST = frozenset({"prev_content", "prev_sender"})


def steady(value: Any) -> Any:
    """The value without what changes by itself."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [steady(item) for item in value]
    return value


def by_key(items: list[Json], key: str) -> Json:
    """A list whose order says nothing, as a mapping."""
    return {str(item[key]): steady(item) for item in items}


def in_order(events: list[Json], key: str = "event_id") -> Json:
    """A list whose order counts: the ids in order, and the things by id."""
    return {"order": [event[key] for event in events], "by_id": by_key(events, key)}


def without_past(event: Json) -> Json:
    """A steady event without what it replaced.

    Whether /state, /members and /event repeat that depends on what is in the server's cache;
    /messages always does, and there it is kept.
    """
    kept = {key: value for key, value in steady(event).items() if key not in _PAST}
    if "unsigned" in kept:
        kept["unsigned"] = {k: v for k, v in kept["unsigned"].items() if k not in _PAST}
    return kept


def state_map(events: list[Json]) -> Json:
    """State events by type and state key."""
    return {f"{event['type']}|{event['state_key']}": without_past(event) for event in events}


NOTHING: Json = {
    "presence": {"types": []},
    "account_data": {"types": []},
    "room": {"rooms": []},
}


def seeded_devices(user: Json) -> list[str]:
    return [device for device in user["devices"] if device != people.WITNESS_DEVICE]


def own_leave(events: list[Json], user: str) -> int:
    """How many of the events (newest first) are newer than the user's own end in the room."""
    for number, event in enumerate(events):
        if event["type"] == "m.room.member" and event["state_key"] == user:
            return number if event["content"]["membership"] in ("leave", "ban") else 0
    return 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def history(client: Client, room: str, token: str) -> Iterator[Json]:
    """Every event the user may see, newest first.

    A page may be empty because all of it is hidden from the user, so two in a row end it, not one
    (1.40 goes on handing out tokens past the beginning of the room).
    """
    empty = 0
    while empty < 2:
        page = client.messages(room, token, limit=PAGE)
        yield from page["chunk"]
        empty = 0 if page["chunk"] else empty + 1
        following = page.get("end")
        if following is None or following == token:
            return
        token = following


def sync_room(found: Json) -> Json:
    """What a room's part of the first sync says, without positions."""
    receipts: Json = {}
    for event in found.get("ephemeral", {}).get("events", []):
        for event_id, kinds in event["content"].items():
            for kind, users in kinds.items():
                for user, data in users.items():
                    receipts[f"{kind} {user}"] = {"event_id": event_id, **data}
    account_data = found.get("account_data", {}).get("events", [])
    return {
        "unread": found.get("unread_notifications"),
        "summary": found.get("summary"),
        "account_data": {event["type"]: event["content"] for event in account_data},
        "receipts": receipts,
        "timeline": [event["event_id"] for event in found.get("timeline", {}).get("events", [])],
        "invite_state": {
            f"{event['type']}|{event['state_key']}": steady(event)
            for event in found.get("invite_state", {}).get("events", [])
        },
    }
