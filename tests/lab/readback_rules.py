"""Compares two read-backs: every difference must be one that is known and allowed by name."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Path = tuple[str, ...]


class _Missing:
    def __repr__(self) -> str:
        return "(absent)"


MISSING: Any = _Missing()


@dataclass(frozen=True)
class Change:
    """One place where two documents differ, with the documents themselves."""

    path: Path
    before: Any
    after: Any
    documents: tuple[Any, Any]

    def near(self, up: int, *path: str) -> Any:
        """What stands in the later document `up` steps above the place, and then at the path."""
        found = self.documents[1]
        for part in (*self.path[: len(self.path) - up], *path):
            if not isinstance(found, dict) or part not in found:
                return MISSING
            found = found[part]
        return found


@dataclass(frozen=True)
class Allowed:
    """A known difference of server behaviour.

    name: how it is called in reports. why: what changed in Synapse. path: a pattern for the place,
    one part for each key (`*` matches any part, `**` any number of them). fits: whether the change
    is just that difference.
    """

    name: str
    why: str
    path: Path
    fits: Callable[[Change], bool]


@dataclass(frozen=True)
class Difference:
    """One place where two read-backs differ. allowed_by: name of the rule, or None."""

    path: Path
    before: Any
    after: Any
    allowed_by: str | None

    def __str__(self) -> str:
        return f"{' / '.join(self.path)}: {_short(self.before)} -> {_short(self.after)}"


# --- what a change must be to fit -------------------------------------------------------------


def _new(*values: Any) -> Callable[[Change], bool]:
    """A new field with one of the values."""
    known = [json.dumps(value, sort_keys=True) for value in values]

    def fits(change: Change) -> bool:
        if change.before is not MISSING or change.after is MISSING:
            return False
        return json.dumps(change.after, sort_keys=True) in known

    return fits


def _new_text(change: Change) -> bool:
    return change.before is MISSING and isinstance(change.after, str) and bool(change.after)


def _gone(change: Change) -> bool:
    return change.before is not MISSING and change.after is MISSING


def _number_to_boolean(change: Change) -> bool:
    number, boolean = change.before, change.after
    return type(number) is int and type(boolean) is bool and number == int(boolean)


def _same_word(change: Change) -> bool:
    before, after = change.before, change.after
    return isinstance(before, str) and isinstance(after, str) and before.lower() == after


def _names_its_target(change: Change) -> bool:
    return bool(change.before is MISSING and change.after == change.near(2, "redacts"))


def _edited_text(change: Change) -> bool:
    edit = change.near(1, "unsigned", "m.relations", "m.replace", "content", "m.new_content")
    before, after = change.before, change.after
    if not all(isinstance(content, dict) for content in (edit, before, after)):
        return False
    # What it was before the edit 1.40 did not tell, but it was as complete.
    whole = after.keys() == before.keys() and after.get("msgtype") == before.get("msgtype")
    applied = {key: value for key, value in before.items() if key != "m.relates_to"} == edit
    return whole and applied and bool(after.get("body"))


def _relations(change: Change) -> bool:
    before = change.before if isinstance(change.before, dict) else {}
    after = {} if change.after is MISSING else change.after
    if not isinstance(after, dict) or before.keys() - {"m.annotation"} != after.keys():
        return False
    # Of the replacing event 1.40 gave three fields, now it is there as a whole.
    old, new = before.get("m.replace", {}), after.get("m.replace", {})
    return after.keys() <= {"m.replace"} and all(new.get(k) == v for k, v in old.items())


DAY_MS = 24 * 60 * 60 * 1000

NEW_DEFAULT_RULES = frozenset(
    {
        ".m.rule.is_user_mention",
        ".m.rule.is_room_mention",
        ".m.rule.suppress_edits",
        ".m.rule.room.server_acl",
    }
)


def _default_rule(change: Change) -> bool:
    if change.before is MISSING:
        return change.path[-1] in NEW_DEFAULT_RULES and change.after.get("enabled") is True
    if change.after is MISSING:
        return False
    return _rule_meaning(change.before) == _rule_meaning(change.after)


def _rule_meaning(rule: Json) -> Json:
    """A rule without what says nothing: `dont_notify`, highlight off, and the order."""
    meaning: Json = dict(rule)
    actions = []
    for action in rule["actions"]:
        if action == "dont_notify":
            continue
        if isinstance(action, dict) and action.get("set_tweak") == "highlight":
            if action.get("value", True) is False:
                continue
            action = {"set_tweak": "highlight"}
        actions.append(json.dumps(action, sort_keys=True))
    meaning["actions"] = sorted(actions)
    if "conditions" in rule:
        conditions = [json.dumps(condition, sort_keys=True) for condition in rule["conditions"]]
        meaning["conditions"] = sorted(conditions)
    return meaning


def _default_order(change: Change) -> bool:
    if not isinstance(change.before, list) or not isinstance(change.after, list):
        return False
    return sorted(change.before) == sorted(set(change.after) - NEW_DEFAULT_RULES)


def _older_than_a_day(change: Change) -> bool:
    if change.after is not MISSING or not isinstance(change.before, dict):
        return False
    highlights = any(
        isinstance(action, dict)
        and action.get("set_tweak") == "highlight"
        and action.get("value", True) is not False
        for action in change.before["actions"]
    )
    taken = change.documents[1].get("taken", 0)
    return not highlights and change.before["ts"] < taken - DAY_MS


def _nothing_after_leaving(change: Change) -> bool:
    return bool(change.after == {"order": [], "by_id": {}})


_EMPTY_RULES: Json = {"order": [], "by_id": {}}
_ADMIN_USER = ("admin", "user*", "*")
_RULES = ("users", "*", "push_rules")

WHITELIST: tuple[Allowed, ...] = (
    Allowed(
        "default_push_rules",
        "the server's own rules: four new ones, `dont_notify` is an empty list now",
        (*_RULES, "global/*", "default", "by_id", "*"),
        _default_rule,
    ),
    Allowed(
        "default_push_rules",
        "the order of the server's own rules, with the four new ones among them",
        (*_RULES, "global/*", "default", "order"),
        _default_order,
    ),
    Allowed(
        "default_push_rules",
        "a new kind of rules, of which there are none",
        (*_RULES, "global/postcontent"),
        _new({"custom": _EMPTY_RULES, "default": _EMPTY_RULES}),
    ),
    Allowed(
        "edit_not_applied",
        "an edited event was shown with the text of the edit, now it is the event as sent",
        ("**", "content"),
        _edited_text,
    ),
    Allowed(
        "bundled_relations",
        "counts of reactions are not bundled any more, the replacing event is as a whole",
        ("**", "unsigned", "m.relations"),
        _relations,
    ),
    Allowed(
        "redacts_in_content",
        "a redaction says in its content too what it redacts (room version 11 on)",
        ("**", "content", "redacts"),
        _names_its_target,
    ),
    Allowed(
        "transaction_id",
        "the sender is told the transaction id, whichever session asks",
        ("**", "unsigned", "transaction_id"),
        _new_text,
    ),
    Allowed(
        "unsigned_membership",
        "an event says what the reader's membership was (MSC4115)",
        ("**", "unsigned", "membership"),
        _new("join", "invite", "leave", "ban", "knock"),
    ),
    Allowed(
        "history_after_leaving",
        "1.40 showed somebody who left what became of other members afterwards",
        ("users", "*", "rooms", "*", "messages_after_leaving"),
        _nothing_after_leaving,
    ),
    Allowed(
        "stripped_invite",
        "the state shown with an invitation is stripped to type, key, sender and content",
        ("users", "*", "rooms", "*", "sync", "invite_state", "*", "event_id"),
        _gone,
    ),
    Allowed(
        "stripped_invite",
        "the same",
        ("users", "*", "rooms", "*", "sync", "invite_state", "*", "origin_server_ts"),
        _gone,
    ),
    Allowed(
        "stripped_invite",
        "the same",
        ("users", "*", "rooms", "*", "sync", "invite_state", "*", "unsigned"),
        _gone,
    ),
    Allowed(
        "old_notifications_cleared",
        "the list of notifications loses, after a day, those that do not highlight; 1.40 does "
        "that half an hour after its start, later releases half a minute after theirs",
        ("users", "*", "notifications", "*"),
        _older_than_a_day,
    ),
    Allowed("whoami_is_guest", "new field", ("users", "*", "whoami", "is_guest"), _new(False)),
    Allowed(
        "to_device_message_id",
        "a to-device message shows its id",
        ("waiting", "*", "*", "message_id"),
        _new_text,
    ),
    Allowed(
        "admin_booleans",
        "true and false in place of 1 and 0",
        (*_ADMIN_USER, "*"),
        _number_to_boolean,
    ),
    Allowed(
        "admin_booleans",
        "the same for media, over SQLite",
        ("admin", "media", "*", "*", "safe_from_quarantine"),
        _number_to_boolean,
    ),
    Allowed(
        "admin_booleans",
        "the same for rooms, over SQLite",
        ("admin", "rooms", "*", "[fp]*"),
        _number_to_boolean,
    ),
    Allowed(
        "engine_booleans",
        "true and false in place of 1 and 0, once the database is PostgreSQL instead of SQLite",
        ("admin", "media", "*", "*", "*"),
        _number_to_boolean,
    ),
    Allowed(
        "engine_booleans",
        "the same for rooms",
        ("admin", "rooms", "*", "*"),
        _number_to_boolean,
    ),
    Allowed(
        "engine_search",
        "PostgreSQL's search names what it found in small letters, SQLite's as it is written",
        ("users", "*", "search", "*", "highlights", "*"),
        _same_word,
    ),
    Allowed(
        "search_highlights",
        "over SQLite the search names the words it found, 1.40 named none",
        ("users", "*", "search", "*", "highlights"),
        lambda change: change.before == [] and change.after == [change.path[3]],
    ),
    Allowed(
        "admin_no_password_hash",
        "the hash is not shown any more",
        ("admin", "user", "*", "password_hash"),
        _gone,
    ),
    *(
        Allowed("admin_new_user_fields", "new field", (*_ADMIN_USER, field), _new(*values))
        for field, values in {
            "consent_ts": (None,),
            "erased": (False,),
            "is_guest": (False,),
            "locked": (False,),
            "suspended": (False,),
        }.items()
    ),
    *(
        Allowed("admin_new_media_fields", "new field", ("admin", "media", "*", "*", field), fits)
        for field, fits in {
            "authenticated": _new(False, 0),
            "sha256": _new(None),
            "url_cache": _new(None),
            "user_id": lambda change: change.before is MISSING and change.after == change.path[2],
        }.items()
    ),
    *(
        Allowed("admin_new_room_fields", "new field", ("admin", "room*", "*", field), fits)
        for field, fits in {
            "forgotten": _new(False),
            "room_type": _new(None, "m.space"),
            "replacement_room": lambda change: change.before is MISSING,
            "tombstoned": _new(False, True),
        }.items()
    ),
    Allowed(
        "user_directory_rebuilt",
        "the directory is made anew, and may find people whom the old one had not",
        ("users", "*", "user_directory", "*", "*"),
        lambda change: change.before is MISSING,
    ),
)


def compare(before: Any, after: Any, allowed: Sequence[Allowed] = WHITELIST) -> list[Difference]:
    """All differences of two documents, in order of their path, the allowed ones marked.

    A place that an allowed rule covers as a whole is one difference; else it is gone into. When
    the documents were taken (`taken`) is no difference.
    """
    judge = _Judge(allowed, (before, after))
    found = _differences((), before, after, judge)
    return [difference for difference in found if difference.path != ("taken",)]


class _Judge:
    def __init__(self, allowed: Sequence[Allowed], documents: tuple[Any, Any]) -> None:
        self.documents = documents
        self.by_tail: dict[str, list[Allowed]] = {}
        self.other: list[Allowed] = []
        for rule in allowed:
            # Most rules end in a plain key; looking that up first makes many changes cheap.
            if any(mark in rule.path[-1] for mark in "*?["):
                self.other.append(rule)
            else:
                self.by_tail.setdefault(rule.path[-1], []).append(rule)

    def name(self, path: Path, before: Any, after: Any) -> str | None:
        rules: list[Allowed] = [*self.by_tail.get(path[-1], ()), *self.other] if path else []
        change = Change(path, before, after, self.documents)
        for rule in rules:
            if matches(rule.path, path) and rule.fits(change):
                return rule.name
        return None


def _differences(path: Path, before: Any, after: Any, judge: _Judge) -> Iterator[Difference]:
    alike = type(before) is type(after)
    containers = alike and isinstance(before, (dict, list))
    if alike and before == after and not containers:
        return
    # Equal containers are gone into all the same: in Python True == 1, to a client it is not.
    name = None if containers and before == after else judge.name(path, before, after)
    if name is not None:
        yield Difference(path, before, after, name)
    elif containers and isinstance(before, dict):
        for key in sorted(before.keys() | after.keys()):
            old, new = before.get(key, MISSING), after.get(key, MISSING)
            yield from _differences((*path, key), old, new, judge)
    elif containers and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences((*path, str(number)), old, new, judge)
    else:
        yield Difference(path, before, after, None)


def matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether a path fits a pattern of parts."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(pattern[1:], path[skip:]) for skip in range(len(path) + 1))
    if not path or not fnmatch.fnmatchcase(path[0], pattern[0]):
        return False
    return matches(pattern[1:], path[1:])


def report(differences: Sequence[Difference], most: int = 40) -> str:
    """The differences as text: those that are not allowed one by one, the others counted."""
    wrong = [difference for difference in differences if difference.allowed_by is None]
    known = Counter(d.allowed_by for d in differences if d.allowed_by is not None)
    lines = [f"{len(differences)} differences, {len(wrong)} of them not allowed"]
    lines += [f"  allowed: {name} x {count}" for name, count in sorted(known.items())]
    lines += [f"  WRONG: {difference}" for difference in wrong[:most]]
    if len(wrong) > most:
        lines.append(f"  ... and {len(wrong) - most} more")
    return "\n".join(lines)


def _short(value: Any, most: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"
