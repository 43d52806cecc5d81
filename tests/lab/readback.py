"""Reads everything a client can see of the seeded server, as each user, into one JSON document.

    python -m tests.lab.readback --url https://chat.lale.test --ca .lab/ca.pem \
        --seed seed.json --out dump.json
    python -m tests.lab.readback compare before.json after.json

Only tokens which seed.json holds are used (1.40 issued them), nothing is written, and nothing is
acknowledged: no `/sync` has a `since`, so to-device messages go on waiting. What others made since
(the witness, the verify) is left out: other rooms, other users, other devices, other media. Two
documents of one unchanged server are equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.lab import people
from tests.lab.client import (
    ADMIN,
    CLIENT,
    MEDIA,
    Client,
    answer_or_refusal,
    each,
    quoted,
)
from tests.lab.reach import reached
from tests.lab.readback_rules import WHITELIST, Difference, compare, report
from tests.lab.readback_shape import (
    NOTHING,
    PAGE,
    by_key,
    digest,
    history,
    in_order,
    own_leave,
    seeded_devices,
    state_map,
    steady,
    sync_room,
    without_past,
)

__all__ = ["WHITELIST", "Difference", "Reader", "compare", "main", "read"]

Json = dict[str, Any]

TERMS = ("Schnecke", "Rhabarber", "Nachtrag", "Tulpe")
DIRECTORY_TERMS = ("anna", "Müller", "o", "lale")


class Reader:
    """One read-back. `events`: how many events of each room are read by id (None: all)."""

    def __init__(
        self,
        url: str,
        seed: Json,
        ca: str | None = None,
        admin_url: str | None = None,
        events: int | None = None,
    ) -> None:
        self.url = url
        self.seed = seed
        self.ca = ca
        self.admin_url = admin_url or url
        self.events = events
        self.rooms = sorted(room["id"] for room in seed["rooms"].values())
        self.room_set = frozenset(self.rooms)
        self.users = {user["id"]: user for user in seed["users"]}
        self.living = [user for user in seed["users"] if not user["deactivated"]]
        self.admin_user = next(user for user in seed["users"] if user["admin"])

    def client(self, user: Json, device: str = "PHONE", url: str | None = None) -> Client:
        """A client with a token that 1.40 issued."""
        return Client(
            url or self.url,
            user["tokens"][device],
            user["id"],
            device,
            ca=self.ca,
            timeout=120,
            retry_for=10,
        )

    def read(self) -> Json:
        """Everything. Raises MatrixError if the server does not answer."""
        users = dict(
            zip(
                self.users,
                each(self._user, self.users.values(), workers=len(self.users)),
                strict=True,
            )
        )
        parts: list[tuple[str, Callable[[], Any]]] = [
            *((f"events {room}", self._events_of(room, users)) for room in self.rooms),
            ("media", self._media),
            ("waiting", self._waiting),
            ("directory", self._directory),
            ("admin", self._admin),
        ]
        answers = dict(zip((n for n, _ in parts), each(lambda p: p[1](), parts), strict=True))
        return {
            "taken": int(time.time() * 1000),
            "users": users,
            "events": {room: answers[f"events {room}"] for room in self.rooms},
            **{name: answers[name] for name in ("media", "waiting", "directory", "admin")},
        }

    # --- one user ---------------------------------------------------------------------------

    def _user(self, user: Json) -> Json:
        with self.client(user) as client:
            whoami = answer_or_refusal(client.whoami)
            if "refused" in whoami:
                # As it should be for somebody deactivated; for others the comparison sees it.
                return {"whoami": whoami}
            synced = self._sync(client)
            me = quoted(user["id"])
            result: Json = {
                "whoami": whoami,
                "profile": client.profile(user["id"]),
                "presence": self._get(client, f"/presence{me}/status").get("status_msg"),
                "devices": {
                    device: found
                    for device, found in by_key(client.devices(), "device_id").items()
                    if device in seeded_devices(user)
                },
                "threepids": self._get(client, "/account/3pid"),
                "joined_rooms": sorted(
                    self.room_set & set(self._get(client, "/joined_rooms")["joined_rooms"])
                ),
                "account_data": {
                    event["type"]: event["content"]
                    for event in synced["account_data"]["events"]
                    # Read for itself, with the rules that people made apart from the server's.
                    if event["type"] != "m.push_rules"
                },
                "push_rules": self._push_rules(client),
                "pushers": by_key(self._get(client, "/pushers")["pushers"], "pushkey"),
                "notifications": self._notifications(client),
                "filters": {
                    made["id"]: self._get(client, f"/user{me}/filter{quoted(made['id'])}")
                    for made in self.seed["filters"]
                    if made["user"] == user["id"]
                },
                "keys": self._keys(client),
                "backup": self._backup(client),
                "search": {term: self._search(client, term) for term in TERMS},
                "user_directory": {term: self._people(client, term) for term in DIRECTORY_TERMS},
                "rooms": {room: self._room(client, room, synced) for room in self.rooms},
            }
        result["encryption"] = {
            d: self._encryption(user, d) for d in user["tokens"] if d != people.WITNESS_DEVICE
        }
        return result

    def _get(self, client: Client, path: str, **params: Any) -> Any:
        return client.request("GET", CLIENT + path, params=params or None)

    def _sync(self, client: Client) -> Json:
        wanted = {
            "presence": {"types": []},
            # No list of rooms here: 1.40 then leaves all receipts out.
            "room": {
                "include_leave": True,
                "timeline": {"limit": 20},
                "ephemeral": {"types": ["m.receipt"]},
            },
        }
        return client.sync(filter=wanted, set_presence="offline", full_state="true")

    def _room(self, client: Client, room: str, synced: Json) -> Json:
        path = f"/rooms{quoted(room)}"
        result: Json = {
            "state": answer_or_refusal(lambda: state_map(client.room_state(room))),
            "members": answer_or_refusal(lambda: state_map(client.members(room))),
            "tags": self._get(client, f"/user{quoted(client.user_id or '')}{path}/tags")["tags"],
            "aliases": answer_or_refusal(
                lambda: sorted(self._get(client, f"{path}/aliases")["aliases"])
            ),
        }
        seen = answer_or_refusal(lambda: list(history(client, room, synced["next_batch"])))
        if isinstance(seen, list):
            after = own_leave(seen, str(client.user_id))
            result["messages"] = in_order(seen[after:])
            result["messages_after_leaving"] = in_order(seen[:after])
        else:
            result["messages"] = seen
        if room in synced["rooms"].get("join", {}):
            # For those who left, 1.40 answers this one with 500.
            result["joined_members"] = self._get(client, f"{path}/joined_members")["joined"]
        for membership in ("join", "invite", "leave"):
            found = synced["rooms"].get(membership, {}).get(room)
            if found is not None:
                result["sync"] = {"membership": membership, **sync_room(found)}
        return result

    def _push_rules(self, client: Client) -> Json:
        return {
            f"{scope}/{kind}": {
                "custom": in_order([rule for rule in rules if not rule["default"]], "rule_id"),
                "default": in_order([rule for rule in rules if rule["default"]], "rule_id"),
            }
            for scope, kinds in client.push_rules().items()
            for kind, rules in kinds.items()
        }

    def _notifications(self, client: Client) -> Json:
        """The list of notifications: unread ones with what they said, read ones as a list."""
        found: list[Json] = []
        token: str | None = None
        while True:
            params = {"limit": PAGE, **({"from": token} if token else {})}
            page = self._get(client, "/notifications", **params)
            found += page["notifications"]
            token = page.get("next_token")
            if not token:
                break
        mine = [item for item in found if item["room_id"] in self.room_set]
        return {
            item["event"]["event_id"]: {
                key: steady(item[key]) for key in ("actions", "read", "room_id", "ts")
            }
            for item in mine
        }

    def _keys(self, client: Client) -> Json:
        answer = client.keys_query(sorted(self.users))
        devices = {
            user: {d: k for d, k in keys.items() if d in seeded_devices(self.users[user])}
            for user, keys in answer["device_keys"].items()
        }
        cross = {f"{usage}_keys" for usage in ("master", "self_signing", "user_signing")}
        return {"device_keys": devices, **{name: answer.get(name) for name in sorted(cross)}}

    def _backup(self, client: Client) -> Any:
        def fetch() -> Json:
            version = self._get(client, "/room_keys/version")
            keys = self._get(client, "/room_keys/keys", version=version["version"])
            return {"version": version, "keys": keys}

        return answer_or_refusal(fetch)

    def _search(self, client: Client, term: str) -> Json:
        wanted = {
            "search_term": term,
            "order_by": "recent",
            "filter": {"rooms": self.rooms, "limit": PAGE},
        }
        body = {"search_categories": {"room_events": wanted}}
        answer = client.request("POST", f"{CLIENT}/search", body)
        found = answer["search_categories"]["room_events"]
        return {
            "count": found["count"],
            "events": [item["result"]["event_id"] for item in found["results"]],
            "highlights": sorted(found["highlights"]),
        }

    def _people(self, client: Client, term: str) -> Json:
        body = {"search_term": term, "limit": 50}
        answer = client.request("POST", f"{CLIENT}/user_directory/search", body)
        found = by_key(answer["results"], "user_id")
        return {user: entry for user, entry in found.items() if user in self.users}

    def _encryption(self, user: Json, device: str) -> Json:
        with self.client(user, device) as client:
            answer = client.sync(filter=NOTHING, set_presence="offline")
        unused = "device_unused_fallback_key_types"
        counts = answer.get("device_one_time_keys_count", {})
        return {
            "one_time_keys": {kind: count for kind, count in counts.items() if count},
            "fallback": answer.get(unused, answer.get(f"org.matrix.msc2732.{unused}")),
        }

    # --- what is not one user's --------------------------------------------------------------

    def _events_of(self, room: str, users: Json) -> Callable[[], Json]:
        """Reads a room's events by id, as the user who sees most of them."""

        def order(user: str) -> list[str]:
            seen = users[user].get("rooms", {}).get(room, {}).get("messages", {})
            return list(seen.get("order", []))

        reader = max(self.users, key=lambda user: len(order(user)))
        wanted = order(reader)
        if self.events is not None and len(wanted) > self.events:
            step = len(wanted) / self.events
            wanted = [wanted[int(number * step)] for number in range(self.events)]

        def fetch() -> Json:
            with self.client(self.users[reader]) as client:
                found = {e: answer_or_refusal(partial(client.event, room, e)) for e in wanted}
                return {event: without_past(answer) for event, answer in found.items()}

        return fetch

    def _media(self) -> Json:
        with self.client(self.admin_user) as client, Client(self.url, ca=self.ca) as nobody:

            def entry(medium: Json) -> Json:
                mxc = medium["mxc"]

                def thumbnail(size: Json) -> Any:
                    wanted = (size["width"], size["height"], size["method"])
                    return answer_or_refusal(lambda: digest(client.thumbnail(mxc, *wanted)))

                tail = quoted("download", *mxc.removeprefix("mxc://").split("/", 1))
                return {
                    "bytes": answer_or_refusal(lambda: digest(client.download(mxc))),
                    "without_token": answer_or_refusal(
                        lambda: digest(nobody.request("GET", MEDIA + tail, raw=True))
                    ),
                    "thumbnails": {
                        "{width}x{height}-{method}".format(**size): thumbnail(size)
                        for size in medium["thumbnails"]
                    },
                }

            return {medium["mxc"]: entry(medium) for medium in self.seed["media"]}

    def _waiting(self) -> Json:
        result = {}
        for waiting in self.seed["waiting"]:
            with self.client(self.users[waiting["user"]], waiting["device"]) as client:
                answer = client.sync(filter=NOTHING, set_presence="offline")
            # Others may write to this device while the read-back's document is made.
            mine = [
                event
                for event in answer.get("to_device", {}).get("events", [])
                if event["type"] == "m.room.encrypted" and "number" in event["content"]
            ]
            result[f"{waiting['user']}/{waiting['device']}"] = mine
        return result

    def _directory(self) -> Json:
        with self.client(self.admin_user) as client:
            listed = by_key(self._get(client, "/publicRooms", limit=500)["chunk"], "room_id")
            aliases = {
                alias
                for room in self.rooms
                for alias in self._get(client, f"/rooms{quoted(room)}/aliases")["aliases"]
            }
            return {
                "listed": {room: found for room, found in listed.items() if room in self.room_set},
                "visibility": {
                    room: self._get(client, f"/directory/list/room{quoted(room)}")
                    for room in self.rooms
                },
                "aliases": {
                    alias: self._get(client, f"/directory/room{quoted(alias)}")["room_id"]
                    for alias in sorted(aliases)
                },
                "profiles": {
                    user: answer_or_refusal(partial(client.profile, user)) for user in self.users
                },
            }

    def _admin(self) -> Json:
        with self.client(self.admin_user, url=self.admin_url) as client:

            def get(path: str, **params: Any) -> Any:
                return client.request("GET", ADMIN + path, params=params or None)

            listed = by_key(get("/v2/users", limit=500, deactivated="true")["users"], "name")
            rooms = by_key(get("/v1/rooms", limit=500)["rooms"], "room_id")
            reports = get("/v1/event_reports", limit=500)["event_reports"]
            # Others upload too, after the seed did.
            oldest = {"limit": 500, "order_by": "created_ts", "dir": "f"}
            own = {medium["mxc"].rsplit("/", 1)[1] for medium in self.seed["media"]}
            result: Json = {
                "users": {u: found for u, found in listed.items() if u in self.users},
                "rooms": {room: found for room, found in rooms.items() if room in self.room_set},
                "reports": by_key([r for r in reports if r["room_id"] in self.room_set], "id"),
                "user": {},
                "media": {},
                "room": {},
            }
            for user in self.users:
                result["user"][user] = steady(get(f"/v2/users{quoted(user)}"))
                media = by_key(get(f"/v1/users{quoted(user)}/media", **oldest)["media"], "media_id")
                result["media"][user] = {m: found for m, found in media.items() if m in own}
            for room in self.rooms:
                result["room"][room] = {
                    **steady(get(f"/v1/rooms{quoted(room)}")),
                    "members": sorted(get(f"/v1/rooms{quoted(room)}/members")["members"]),
                }
            return result


def read(
    url: str,
    seed: Json,
    ca: str | None = None,
    admin_url: str | None = None,
    events: int | None = None,
) -> Json:
    """The whole read-back, as plain JSON. See Reader."""
    document = Reader(url, seed, ca, admin_url, events).read()
    # Through text and back, so that a fresh document and one from a file compare equal.
    return dict(json.loads(json.dumps(document, sort_keys=True)))


def _events(text: str) -> int | None:
    return None if text == "all" else int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (1: differences that are not allowed)."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["compare"]:
        before, after = (json.loads(Path(path).read_text()) for path in words[1:3])
        differences = compare(before, after)
        print(report(differences))
        return int(any(difference.allowed_by is None for difference in differences))
    parser = argparse.ArgumentParser(prog="python -m tests.lab.readback", description=__doc__)
    parser.add_argument("--url", default=people.PUBLIC_URL)
    parser.add_argument("--ca")
    parser.add_argument("--admin-url", help="where the admin API is served (default: --url)")
    parser.add_argument("--admin-pid", type=int, help="reach --admin-url inside its machine")
    parser.add_argument("--seed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--events", type=_events, default=None, help="all, or a number a room")
    given = parser.parse_args(words)
    begun = time.monotonic()
    seed = json.loads(given.seed.read_text())
    with reached(given.admin_url or given.url, given.admin_pid) as admin_url:
        document = read(given.url, seed, given.ca, admin_url, given.events)
    given.out.write_text(json.dumps(document, sort_keys=True, ensure_ascii=False))
    print(f"read back in {time.monotonic() - begun:.1f} s: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
