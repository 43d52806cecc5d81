"""What people do besides talking: read, react, edit, take back, sort, mute, report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tests.lab import people, seed_rooms
from tests.lab.client import CLIENT, Client, quoted

Json = dict[str, Any]


class Seeding(Protocol):
    """What is needed of the seed run: its clients, rooms (name to id), sent events, extras."""

    rooms: dict[str, str]
    sent: dict[str, list[str]]
    extra: Json

    def of(self, name: str, device: str = "PHONE") -> Client:
        """The client of a person's device."""


def live(seed: Seeding) -> None:
    """Everything of this module, in one go."""
    react(seed)
    take_back(seed)
    seed.rooms["new_hall"] = seed_rooms.upgrade_hall(seed.rooms, seed.of)
    for name in ("anna", "bruno", "goran"):
        for number in range(3):
            seed.of(name).send_text(seed.rooms["new_hall"], f"neuer Saal {number} von {name}")
    read(seed)
    seed_rooms.shuffle_members(seed.rooms, seed.of)
    _after_reading(seed)
    _sort(seed)
    _rules(seed.of)
    _pusher(seed)
    _filters(seed)
    report(seed)


def react(seed: Seeding) -> None:
    """Reactions, an edit and a reply."""
    lobby, events = seed.rooms["lobby"], seed.sent["lobby"]
    for number, event in enumerate(events[:20]):
        for name in ("anna", "goran", "hanna")[: number % 3 + 1]:
            annotation = {
                "rel_type": "m.annotation",
                "event_id": event,
                "key": "👍🌷🐌"[number % 3],
            }
            seed.of(name).send_event(lobby, "m.reaction", {"m.relates_to": annotation})
    said = seed.of("clara").send_text(lobby, "Morgen um dei im Garten")
    seed.of("clara").send_event(
        lobby,
        "m.room.message",
        {
            "msgtype": "m.text",
            "body": " * Morgen um drei im Garten",
            "m.new_content": {"msgtype": "m.text", "body": "Morgen um drei im Garten"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": said},
        },
    )
    reply = {"m.in_reply_to": {"event_id": said}}
    content = {"msgtype": "m.text", "body": "> Morgen\n\nJa!", "m.relates_to": reply}
    seed.of("dario").send_event(lobby, "m.room.message", content)
    seed.extra["edited"] = said


def take_back(seed: Seeding) -> None:
    """Redactions, of messages, of a reaction, and of a piece of state."""
    redacted = []
    for room in ("lobby", "office", "cafe", "archive"):
        for event in seed.sent[room][5:8]:
            name = "dario" if room == "archive" else "bruno" if room == "cafe" else "anna"
            seed.of(name).redact(seed.rooms[room], event, "Tippfehler ✂")
            redacted.append(event)
    office, bruno = seed.rooms["office"], seed.of("bruno")
    mistaken = bruno.send_state(office, "test.lale.bed", {"flowers": -1}, "bed-wrong")
    bruno.redact(office, mistaken)
    seed.extra["redacted"] = redacted


def read(seed: Seeding) -> None:
    """Receipts and fully-read markers, so that something stays unread for nearly everyone."""
    for room in seed_rooms.ROOMS:
        events = seed.sent.get(room.name, [])
        if not events:
            continue
        for number, name in enumerate(room.members):
            if name == people.DEACTIVATED:
                continue
            upto = events[max(0, len(events) - 1 - 7 * number)]
            seed.of(name).read_markers(seed.rooms[room.name], upto)
            if number % 2:
                earlier = events[max(0, len(events) - 20 - number)]
                seed.of(name).receipt(seed.rooms[room.name], earlier)


def _after_reading(seed: Seeding) -> None:
    # A last word in some rooms, mentions among them, which nobody has read.
    said = {"lobby": "goran", "office": "fiona", "dm_anna_bruno": "anna", "vault": "fiona"}
    for room, name in said.items():
        for number in range(4):
            seed.of(name).send_text(seed.rooms[room], f"Bruno Müller, Nachtrag {number} @room")


def _sort(seed: Seeding) -> None:
    def tag(name: str, room: str, label: str, order: float) -> None:
        user = people.BY_NAME[name].user_id
        path = f"{CLIENT}/user{quoted(user, 'rooms', seed.rooms[room], 'tags', label)}"
        seed.of(name).request("PUT", path, {"order": order})

    tag("anna", "office", "m.favourite", 0.25)
    tag("anna", "dm_anna_bruno", "m.favourite", 0.75)
    tag("bruno", "cafe", "m.lowpriority", 0.5)
    tag("fiona", "lobby", "u.Grün ☘", 0.1)
    ignored: Json = {"ignored_users": {people.BY_NAME["dario"].user_id: {}}}
    seed.of("hanna").set_account_data("m.ignored_user_list", ignored)
    for name in seed_rooms.ALL:
        seed.of(name).set_account_data("test.lale.garden", {"owner": name, "größe": 12})
    for name in ("anna", "bruno", "goran"):
        data = {"colour": "grün", "by": name}
        seed.of(name).set_account_data("test.lale.view", data, seed.rooms["office"])


def _rules(of: Callable[[str], Client]) -> None:
    def rule(name: str, kind: str, rule_id: str, body: Json, **where: str) -> None:
        path = f"{CLIENT}/pushrules{quoted('global', kind, rule_id)}"
        of(name).request("PUT", path, body, params=where)

    loud = ["notify", {"set_tweak": "sound", "value": "ding"}, {"set_tweak": "highlight"}]
    rule("anna", "content", "tulips", {"pattern": "Tulpe*", "actions": loud})
    rule("anna", "content", "slugs", {"pattern": "Schnecke", "actions": ["notify"]})
    body = {"pattern": "Maulwurf", "actions": ["dont_notify"]}
    rule("anna", "content", "moles", body, before="slugs")
    rule("anna", "sender", people.BY_NAME["dario"].user_id, {"actions": ["dont_notify"]})
    conditions = [
        {"kind": "event_match", "key": "content.body", "pattern": "Krötenwanderung"},
        {"kind": "room_member_count", "is": ">2"},
    ]
    rule("bruno", "override", "toads", {"conditions": conditions, "actions": loud})
    disabled = f"{CLIENT}/pushrules{quoted('global', 'underride', '.m.rule.message', 'enabled')}"
    of("bruno").request("PUT", disabled, {"enabled": False})
    actions = f"{CLIENT}/pushrules{quoted('global', 'override', '.m.rule.roomnotif', 'actions')}"
    of("clara").request("PUT", actions, {"actions": ["notify"]})


def _pusher(seed: Seeding) -> None:
    seed.of("bruno").request(
        "POST",
        f"{CLIENT}/pushers/set",
        {
            "kind": "http",
            "app_id": "test.lale.app",
            "app_display_name": "Lale für Telefone",
            "device_display_name": "Brunos Phone 📱",
            "pushkey": "bruno-pushkey-2021",
            "lang": "de",
            "profile_tag": "garten",
            "data": {"url": "https://push.lale.test/_matrix/push/v1/notify"},
        },
    )


def _filters(seed: Seeding) -> None:
    made = []
    for name in ("anna", "goran"):
        client = seed.of(name)
        body = {
            "room": {
                "timeline": {"limit": 30, "types": ["m.room.message"]},
                "rooms": [seed.rooms["lobby"]],
            },
            "presence": {"types": []},
        }
        path = f"{CLIENT}/user{quoted(str(client.user_id), 'filter')}"
        made.append({"user": client.user_id, "id": client.request("POST", path, body)["filter_id"]})
    seed.extra["filters"] = made


def report(seed: Seeding) -> None:
    """Two complaints for the admin."""
    for name, number in (("clara", 1), ("hanna", 2)):
        path = f"{CLIENT}/rooms{quoted(seed.rooms['lobby'], 'report', seed.sent['lobby'][number])}"
        body = {"score": -50 * number, "reason": "unhöflich zu den Schnecken"}
        seed.of(name).request("POST", path, body)
