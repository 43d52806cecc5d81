"""The comparison of read-backs, and the pure parts of seed, read-back and legacy machine."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.lab import legacy, people, seed_crypto, seed_media, seed_rooms
from tests.lab.readback_rules import MISSING, WHITELIST, compare, matches, report
from tests.lab.readback_shape import history, in_order, own_leave, state_map, steady

Json = dict[str, Any]

ANNA, ROOM, EVENT, MXC = "@anna:lale.test", "!a:lale.test", "$one", "mxc://lale.test/x"
LEAVE: Json = {"order": [], "by_id": {}}


def rule(name: str, actions: list[Any], *, default: bool, enabled: bool = True) -> Json:
    return {"rule_id": name, "actions": actions, "default": default, "enabled": enabled}


def event(name: str, **more: Any) -> Json:
    return {"event_id": name, "content": {"body": "Grüße"}, "unsigned": {}, **more}


def before() -> Json:
    """A little of what 1.40 shows."""
    edit = {"m.relations": {"m.replace": {"event_id": "$e", "sender": ANNA}}}
    events = {
        EVENT: event(EVENT),
        "$edited": {
            **event("$edited"),
            "content": {"body": "new", "msgtype": "m.text"},
            "unsigned": edit,
        },
        "$redaction": event("$redaction", redacts=EVENT),
        "$loved": {
            **event("$loved"),
            "unsigned": {"m.relations": {"m.annotation": {"chunk": [{"count": 3}]}}},
        },
    }
    return {
        "taken": 1_000_000_000,
        "users": {
            ANNA: {
                "whoami": {"user_id": ANNA},
                "push_rules": {
                    "global/override": {
                        "custom": in_order([rule("mine", ["notify"], default=False)], "rule_id"),
                        "default": in_order(
                            [
                                rule(".m.rule.master", ["dont_notify"], default=True),
                                rule(".m.rule.tombstone", [_tweak(True)], default=True),
                                rule(".m.rule.off", [], default=True, enabled=False),
                            ],
                            "rule_id",
                        ),
                    }
                },
                "notifications": {
                    "$old": {"ts": 1, "actions": ["notify", _tweak(False)], "read": False},
                    "$loud": {"ts": 1, "actions": ["notify", _tweak(True)], "read": False},
                    "$new": {"ts": 999_999_999, "actions": ["notify"], "read": False},
                },
                "rooms": {
                    ROOM: {
                        "messages": {"order": list(events), "by_id": events},
                        "messages_after_leaving": {"order": ["$l"], "by_id": {"$l": {}}},
                        "sync": {
                            "membership": "invite",
                            "unread": {"notification_count": 3},
                            "invite_state": {"m|x": {"event_id": "$i", "content": {}}},
                        },
                    }
                },
                "user_directory": {"a": {}},
                "search": {
                    "Beet": {"count": 1, "events": [EVENT], "highlights": []},
                    "Rose": {"count": 1, "events": [EVENT], "highlights": ["Rose"]},
                },
            }
        },
        "media": {MXC: {"bytes": "aa", "thumbnails": {"32x32-crop": "bb"}}},
        "waiting": {f"{ANNA}/PHONE": [{"content": {"number": 1}, "sender": ANNA}]},
        "admin": {
            "user": {ANNA: {"admin": 1, "deactivated": 0, "password_hash": "$2b$"}},
            "media": {ANNA: {"x": {"media_id": "x", "seen": 0}}},
            "room": {ROOM: {"creator": ANNA}},
        },
    }


def _tweak(on: bool) -> Json:
    return {"set_tweak": "highlight", "value": on}


def after() -> Json:
    """The same as the new release shows it, with every allowed difference."""
    document = before()
    anna = document["users"][ANNA]
    anna["whoami"]["is_guest"] = False
    default = anna["push_rules"]["global/override"]["default"]
    default["by_id"][".m.rule.master"]["actions"] = []
    default["by_id"][".m.rule.tombstone"]["actions"] = [{"set_tweak": "highlight"}]
    mention = ".m.rule.is_user_mention"
    default["by_id"][mention] = rule(mention, ["notify"], default=True)
    default["order"].insert(1, mention)
    anna["push_rules"]["global/postcontent"] = {"custom": LEAVE, "default": LEAVE}
    del anna["notifications"]["$old"]
    room = anna["rooms"][ROOM]
    room["messages_after_leaving"] = LEAVE
    del room["sync"]["invite_state"]["m|x"]["event_id"]
    events = room["messages"]["by_id"]
    for one in events.values():
        one["unsigned"]["membership"] = "join"
    events[EVENT]["unsigned"]["transaction_id"] = "t1"
    events["$edited"]["content"]["body"] = "old"
    whole = {
        "event_id": "$e",
        "sender": ANNA,
        "content": {"m.new_content": {"body": "new", "msgtype": "m.text"}},
    }
    events["$edited"]["unsigned"]["m.relations"]["m.replace"] = whole
    events["$redaction"]["content"]["redacts"] = EVENT
    del events["$loved"]["unsigned"]["m.relations"]
    anna["user_directory"]["a"]["@dario:lale.test"] = {"user_id": "@dario:lale.test"}
    anna["search"]["Beet"]["highlights"] = ["Beet"]
    anna["search"]["Rose"]["highlights"] = ["rose"]
    document["waiting"][f"{ANNA}/PHONE"][0]["message_id"] = "m"
    document["admin"]["user"][ANNA] = {"admin": True, "deactivated": False, "locked": False}
    document["admin"]["media"][ANNA]["x"].update(
        authenticated=False, seen=False, sha256=None, user_id=ANNA
    )
    document["admin"]["room"][ROOM].update(room_type=None, tombstoned=False)
    return document


def wrong(one: Json, other: Json) -> list[str]:
    return ["/".join(d.path) for d in compare(one, other) if d.allowed_by is None]


def test_equal_documents_have_no_difference() -> None:
    assert compare(before(), before()) == []


def test_when_it_was_taken_is_no_difference() -> None:
    assert compare(before(), {**before(), "taken": 5}) == []


def test_every_known_difference_is_allowed_by_name() -> None:
    found = compare(before(), after())
    assert wrong(before(), after()) == []
    assert {difference.allowed_by for difference in found} == {rule.name for rule in WHITELIST}


def test_going_back_is_not_allowed() -> None:
    assert wrong(after(), before())


def _room(document: Json) -> Json:
    return document["users"][ANNA]["rooms"][ROOM]  # type: ignore[no-any-return]


def _events(document: Json) -> Json:
    return _room(document)["messages"]["by_id"]  # type: ignore[no-any-return]


def _override(document: Json) -> Json:
    return document["users"][ANNA]["push_rules"]["global/override"]  # type: ignore[no-any-return]


def _set(find: Callable[[Json], Any], key: Any, value: Any) -> Callable[[Json], None]:
    def damage(document: Json) -> None:
        place = find(document)
        if value is MISSING:
            del place[key]
        else:
            place[key] = value

    return damage


DAMAGE: dict[str, Callable[[Json], None]] = {
    "event lost": _set(_events, EVENT, MISSING),
    "event changed": _set(lambda d: _events(d)[EVENT]["content"], "body", "Grüsse"),
    "edited event lost its text": _set(lambda d: _events(d)["$edited"], "content", {}),
    "replacing event is another": _set(
        lambda d: _events(d)["$edited"]["unsigned"]["m.relations"]["m.replace"], "event_id", "$f"
    ),
    "replacing event lost": _set(
        lambda d: _events(d)["$edited"]["unsigned"], "m.relations", MISSING
    ),
    "redaction of another event": _set(
        lambda d: _events(d)["$redaction"]["content"], "redacts", "$two"
    ),
    "transaction id empty": _set(lambda d: _events(d)[EVENT]["unsigned"], "transaction_id", ""),
    "odd membership": _set(lambda d: _events(d)[EVENT]["unsigned"], "membership", "maybe"),
    "order of events": lambda d: _room(d)["messages"]["order"].reverse(),
    "event doubled": lambda d: _room(d)["messages"]["order"].append(EVENT),
    "another event after leaving": _set(
        _room, "messages_after_leaving", {"order": ["$z"], "by_id": {"$z": {}}}
    ),
    "unread count": _set(lambda d: _room(d)["sync"]["unread"], "notification_count", 0),
    "custom rule lost": lambda d: _override(d)["custom"]["by_id"].pop("mine"),
    "custom rule off": _set(lambda d: _override(d)["custom"]["by_id"]["mine"], "enabled", False),
    "default rule on again": _set(
        lambda d: _override(d)["default"]["by_id"][".m.rule.off"], "enabled", True
    ),
    "default rule loud": _set(
        lambda d: _override(d)["default"]["by_id"][".m.rule.master"], "actions", ["notify"]
    ),
    "default rule lost": lambda d: _override(d)["default"]["by_id"].pop(".m.rule.master"),
    "unknown default rule": _set(
        lambda d: _override(d)["default"]["by_id"], ".m.rule.x", rule(".m.rule.x", [], default=True)
    ),
    "loud notification lost": lambda d: d["users"][ANNA]["notifications"].pop("$loud"),
    "new notification lost": lambda d: d["users"][ANNA]["notifications"].pop("$new"),
    "highlight of another word": _set(
        lambda d: d["users"][ANNA]["search"]["Beet"], "highlights", ["Bett"]
    ),
    "found less": _set(lambda d: d["users"][ANNA]["search"]["Beet"], "events", []),
    "media changed": _set(lambda d: d["media"][MXC], "bytes", "ab"),
    "thumbnail lost": lambda d: d["media"][MXC]["thumbnails"].pop("32x32-crop"),
    "media refused": _set(lambda d: d["media"][MXC], "bytes", {"refused": 404, "errcode": ""}),
    "to-device message lost": lambda d: d["waiting"][f"{ANNA}/PHONE"].pop(),
    "token dead": _set(lambda d: d["users"][ANNA], "whoami", {"refused": 401, "errcode": "M_X"}),
    "no admin any more": _set(lambda d: d["admin"]["user"][ANNA], "admin", False),
    "user locked": _set(lambda d: d["admin"]["user"][ANNA], "locked", True),
    "user gone": lambda d: d["users"].pop(ANNA),
    "room made a space": _set(lambda d: d["admin"]["room"][ROOM], "creator", None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen_among_the_allowed_differences(name: str) -> None:
    damaged = after()
    DAMAGE[name](damaged)
    assert wrong(before(), damaged), name


def test_damage_is_seen_in_an_unchanged_release_too() -> None:
    one = after()
    other = copy.deepcopy(one)
    DAMAGE["event lost"](other)
    assert wrong(one, other) == [f"users/{ANNA}/rooms/{ROOM}/messages/by_id/{EVENT}"]


def test_true_is_not_one() -> None:
    assert wrong({"x": [1, {"y": 0}]}, {"x": [True, {"y": False}]}) == ["x/0", "x/1/y"]


def test_without_a_whitelist_nothing_is_allowed() -> None:
    assert all(difference.allowed_by is None for difference in compare(before(), after(), ()))


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        (("a", "*"), ("a", "b"), True),
        (("a", "*"), ("a", "b", "c"), False),
        (("**", "c"), ("a", "b", "c"), True),
        (("**", "c"), ("c",), True),
        (("**", "b", "c"), ("a", "c"), False),
        (("a", "room*"), ("a", "rooms"), True),
    ],
)
def test_patterns(pattern: tuple[str, ...], path: tuple[str, ...], expected: bool) -> None:
    assert matches(pattern, path) is expected


def test_report_names_what_is_wrong_and_counts_the_rest() -> None:
    damaged = after()
    DAMAGE["media changed"](damaged)
    text = report(compare(before(), damaged))
    assert "1 of them not allowed" in text
    assert "WRONG: media / mxc://lale.test/x / bytes: 'aa' -> 'ab'" in text
    assert "allowed: unsigned_membership x 4" in text


def test_what_moves_by_itself_is_left_out() -> None:
    assert steady({"age": 3, "unsigned": {"age": 1, "x": [{"age": 1}]}}) == {
        "unsigned": {"x": [{}]}
    }


def test_state_does_not_keep_what_it_replaced() -> None:
    state = {"type": "t", "state_key": "", "prev_content": {}, "unsigned": {"prev_content": {}}}
    assert state_map([state]) == {"t|": {"type": "t", "state_key": "", "unsigned": {}}}


class Pages:
    """A room's history in pages, as `Client.messages` gives them."""

    def __init__(self, pages: dict[str, Json]) -> None:
        self.pages = pages

    def messages(self, room: str, token: str, limit: int) -> Json:
        return self.pages[token]


def test_history_goes_past_one_empty_page_and_ends_after_two() -> None:
    pages = Pages(
        {
            "a": {"chunk": [{"n": 1}], "end": "b"},
            "b": {"chunk": [], "end": "c"},
            "c": {"chunk": [{"n": 2}], "end": "d"},
            "d": {"chunk": [], "end": "e"},
            "e": {"chunk": [], "end": "f"},
        }
    )
    assert [event["n"] for event in history(pages, ROOM, "a")] == [1, 2]  # type: ignore[arg-type]


def test_history_ends_where_the_token_ends() -> None:
    pages = Pages({"a": {"chunk": [{"n": 1}], "end": "b"}, "b": {"chunk": [{"n": 2}]}})
    assert [event["n"] for event in history(pages, ROOM, "a")] == [1, 2]  # type: ignore[arg-type]


def test_own_leave_counts_what_came_after_it() -> None:
    def member(user: str, membership: str) -> Json:
        content = {"membership": membership}
        return {"type": "m.room.member", "state_key": user, "content": content}

    later = [member("@b:x", "ban"), {"type": "m.room.message", "content": {}}]
    assert own_leave([*later, member(ANNA, "leave"), member(ANNA, "join")], ANNA) == 2
    assert own_leave([*later, member(ANNA, "join"), member(ANNA, "leave")], ANNA) == 0
    assert own_leave(later, ANNA) == 0


def test_signatures_are_those_of_the_specification() -> None:
    # Matrix specification, appendices, "Cryptographic Test Vectors".
    seed = base64.b64decode("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1=")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    expected = (
        "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
    )
    signed = seed_crypto.sign_json({}, "domain", key, "1")
    assert signed == {"signatures": {"domain": {"ed25519:1": expected}}}


def test_media_are_many_different_and_always_the_same() -> None:
    files = seed_media.files()
    assert len(files) >= 20
    assert len({file.data for file in files}) == len({file.name for file in files}) == len(files)
    assert any(len(file.data) == 5 * 1024 * 1024 for file in files)
    assert any(not file.name.isascii() for file in files)
    kinds = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF89a"}
    for file in files:
        assert file.data.startswith(kinds.get(file.content_type, b""))
    assert seed_media.png(9, 7, 3) == seed_media.png(9, 7, 3)


def test_everybody_in_a_room_is_somebody() -> None:
    for room in seed_rooms.ROOMS:
        assert room.creator in room.members
        assert set(room.members) <= set(seed_rooms.ALL)
    kinds = {people.BY_NAME[name].kind for name in people.WITNESSES}
    assert kinds == {"local", "ldap"}
    assert people.RESERVED_FOR_VERIFY not in seed_rooms.ALL


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_hand_made_files_are_filled(database: legacy.Database) -> None:
    marks = legacy.values(database)
    for name in ("homeserver.yaml", "lale.test.log.config", "slapd.debconf"):
        assert not re.search(r"@[A-Z_]+@", legacy.filled(name, marks)), name
    config = yaml.safe_load(legacy.filled("homeserver.yaml", marks))
    names = {"postgresql": "psycopg2", "sqlite": "sqlite3"}
    assert config["database"]["name"] == names[database]
    assert config["listeners"][0]["port"] == 8008
    assert config["password_config"]["pepper"] == people.PEPPER


def test_the_directory_has_umlauts_in_base64() -> None:
    assert "givenName:: " + base64.b64encode("Göran".encode()).decode() in people.ldif()
    assert people.ldif().count("dn: uid=") == 4


def test_m0_is_named_by_what_makes_it() -> None:
    key = legacy.m0_key("postgresql", "base-1")
    assert key == legacy.m0_key("postgresql", "base-1")
    others = {
        legacy.m0_key("sqlite", "base-1"),
        legacy.m0_key("postgresql", "base-2"),
        legacy.m0_key("postgresql", "base-1", 10),
    }
    assert key not in others
    assert len(others) == 3


def test_an_unknown_database_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ValueError, match="there are: postgresql, sqlite"):
        legacy.build(None, "mysql")  # type: ignore[arg-type]
