"""The seeded rooms, one of every sort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab import people
from tests.lab.client import CLIENT, Client, quoted

Json = dict[str, Any]
ALL = tuple(person.localpart for person in people.SEEDED)


@dataclass(frozen=True)
class Room:
    """A room to make: who makes it, who is in it, what `createRoom` is told, its share of talk."""

    name: str
    creator: str
    members: tuple[str, ...]
    body: Json
    weight: int = 1


def _state(kind: str, content: Json, state_key: str = "") -> Json:
    return {"type": kind, "state_key": state_key, "content": content}


ROOMS = (
    Room(
        "lobby",
        "anna",
        ALL,
        {
            "name": "Empfang 🌷",
            "topic": "Für alle. Grüß Gott!",
            "preset": "public_chat",
            "visibility": "public",
            "room_alias_name": "lobby",
        },
        weight=6,
    ),
    Room(
        "cafe",
        "bruno",
        ("bruno", "clara", "dario", "fiona", "hanna"),
        {"name": "Café", "preset": "public_chat", "visibility": "public"},
        weight=3,
    ),
    Room(
        "attic",
        "clara",
        ("clara", "goran"),
        {"name": "Dachboden", "preset": "public_chat", "visibility": "private"},
    ),
    Room(
        "office",
        "anna",
        ("anna", "bruno", "clara", "fiona", "goran"),
        {
            "name": "Büro",
            "preset": "private_chat",
            "initial_state": [
                _state("m.room.server_acl", {"allow": ["*"], "deny": ["*.spam.test"]}),
                _state("m.room.history_visibility", {"history_visibility": "joined"}),
            ],
            "power_level_content_override": {
                "users": {"@anna:lale.test": 100, "@bruno:lale.test": 50, "@fiona:lale.test": 25},
                "events": {"m.room.topic": 25, "test.lale.bed": 0},
                "invite": 25,
            },
        },
        weight=4,
    ),
    Room(
        "vault",
        "bruno",
        ("bruno", "anna", "fiona"),
        {
            "name": "Tresor",
            "preset": "private_chat",
            "initial_state": [
                _state("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}),
            ],
        },
        weight=2,
    ),
    Room(
        "dm_anna_bruno",
        "anna",
        ("anna", "bruno"),
        {"preset": "trusted_private_chat", "is_direct": True},
    ),
    Room(
        "dm_fiona_anna",
        "fiona",
        ("fiona", "anna"),
        {"preset": "trusted_private_chat", "is_direct": True},
    ),
    Room(
        "garden",
        "anna",
        ("anna", "bruno", "fiona", "hanna"),
        {
            "name": "Garten",
            "preset": "public_chat",
            "room_alias_name": "garten-übersicht",
            "creation_content": {"type": "m.space"},
        },
        weight=0,
    ),
    Room(
        "archive",
        "dario",
        ("dario", "anna", "goran"),
        {"name": "Archiv 2017", "preset": "private_chat", "room_version": "1"},
    ),
    Room(
        "board",
        "anna",
        ("anna", "clara"),
        {
            "name": "Schwarzes Brett",
            "preset": "public_chat",
            "visibility": "public",
            "room_alias_name": "brett",
            "initial_state": [
                _state("m.room.history_visibility", {"history_visibility": "world_readable"}),
                _state("m.room.guest_access", {"guest_access": "forbidden"}),
            ],
        },
    ),
    Room(
        "hall",
        "anna",
        ("anna", "bruno", "clara", "goran"),
        {
            "name": "Festsaal",
            "preset": "public_chat",
            "room_version": "6",
            "room_alias_name": "festsaal",
        },
    ),
    Room(
        "club",
        "bruno",
        ("bruno", "clara", "dario", "goran", "fiona"),
        {"name": "Club der Harken", "preset": "private_chat"},
    ),
)
BY_NAME = {room.name: room for room in ROOMS}

STATE_EVENTS = 150


def make(room: Room, of: Callable[[str], Client]) -> str:
    """Makes one room and brings its members in; returns its id."""
    creator = of(room.creator)
    room_id = creator.create_room(**room.body)
    for name in room.members:
        if name == room.creator:
            continue
        if room.body["preset"] != "public_chat":
            creator.invite(room_id, people.BY_NAME[name].user_id)
        of(name).join(room_id)
    return room_id


def furnish(ids: dict[str, str], of: Callable[[str], Client]) -> None:
    """What comes before the talk: aliases, the space's children, m.direct, state."""
    anna, bruno, fiona = of("anna"), of("bruno"), of("fiona")
    for alias in ("#foyer:lale.test", "#salle-d'accueil:lale.test"):
        anna.request("PUT", f"{CLIENT}/directory/room{quoted(alias)}", {"room_id": ids["lobby"]})
    anna.send_state(
        ids["lobby"],
        "m.room.canonical_alias",
        {"alias": "#lobby:lale.test", "alt_aliases": ["#foyer:lale.test"]},
    )
    for order, child in (("a", "lobby"), ("b", "cafe"), ("c", "board"), ("d", "office")):
        content = {"via": ["lale.test"], "order": order, "suggested": child == "lobby"}
        anna.send_state(ids["garden"], "m.space.child", content, ids[child])
    space = {"via": ["lale.test"], "canonical": True}
    anna.send_state(ids["lobby"], "m.space.parent", space, ids["garden"])
    direct = {
        "anna": {"bruno": ["dm_anna_bruno"], "fiona": ["dm_fiona_anna"]},
        "bruno": {"anna": ["dm_anna_bruno"]},
        "fiona": {"anna": ["dm_fiona_anna"]},
    }
    for name, others in direct.items():
        content = {
            people.BY_NAME[other].user_id: [ids[room] for room in rooms]
            for other, rooms in others.items()
        }
        of(name).set_account_data("m.direct", content)
    for number in range(STATE_EVENTS):
        bed = f"bed-{number % 40}" if number % 3 else f"Beet Größe {number % 10}"
        who = (anna, bruno, fiona)[number % 3]
        who.send_state(ids["office"], "test.lale.bed", {"flowers": number, "soil": "Löß"}, bed)


def upgrade_hall(ids: dict[str, str], of: Callable[[str], Client]) -> str:
    """Upgrades the hall from room version 6 to 8; some go along. Returns the new room."""
    answer = of("anna").membership(ids["hall"], "upgrade", new_version="8")
    new = str(answer["replacement_room"])
    for name in ("bruno", "goran"):
        of(name).join(new)
    return new


def shuffle_members(ids: dict[str, str], of: Callable[[str], Client]) -> None:
    """Leaves one user outside in each way: invited, left, kicked, banned, unbanned."""
    bruno, club = of("bruno"), ids["club"]

    def user(name: str) -> str:
        return people.BY_NAME[name].user_id

    bruno.membership(club, "invite", user_id=user("hanna"))
    of("clara").leave(club)
    bruno.membership(club, "kick", user_id=user("goran"), reason="zu früh geerntet")
    bruno.membership(club, "ban", user_id=user("dario"), reason="hat die Harke verlegt")
    bruno.membership(club, "ban", user_id=user("emil"))
    bruno.membership(club, "unban", user_id=user("emil"))
    anna = of("anna")
    anna.membership(ids["dm_fiona_anna"], "invite", user_id=user("bruno"))
    of("bruno").leave(ids["dm_fiona_anna"])
    of("hanna").leave(ids["lobby"])
    of("hanna").join(ids["lobby"])
