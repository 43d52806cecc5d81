"""Fills the hand-made legacy server with life, through the client API only.

    python -m tests.lab.seed --url https://chat.lale.test --ca .lab/ca.pem --out seed.json

The admin API (quarantine, an e-mail address, a deactivation, shared-secret registration) is not
passed on by the front door; `--admin-url` says where it is reached (default: the same address).
What was made is written to `--out`, which the read-back, the witness and the verify read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import people, seed_crypto, seed_life, seed_media, seed_rooms
from tests.lab.client import ADMIN, Client, each, quoted
from tests.lab.reach import reached

Json = dict[str, Any]
Say = Callable[[str], None]

WAITING = 25
WAITING_FOR = (("bruno", "LAPTOP"), ("fiona", "LAPTOP"))
WORDS = [
    "Tulpe",
    "Zwiebel",
    "Dünger",
    "Schnecke",
    "Gießkanne",
    "Beet",
    "Harke",
    "Frühling",
    "Löwenzahn",
    "Kompost",
    "Regentonne",
    "Maulwurf",
    "Spaten",
    "Hochbeet",
    "Rhabarber",
    "Krötenwanderung",
    "çiçek",
    "bahçe",
    "blåbær",
    "meadow",
    "wheelbarrow",
    "庭",
    "сад",
    "🌷",
    "🐌",
    "ñandú",
]


class Seeder:
    """One run of the seed; `seed()` returns what is written to seed.json."""

    def __init__(
        self,
        url: str,
        ca: str | None = None,
        admin_url: str | None = None,
        messages: int = 2000,
        say: Say = lambda text: None,
    ) -> None:
        self.url = url
        self.ca = ca
        self.admin_url = admin_url or url
        self.messages = messages
        self.say = say
        self.clients: dict[tuple[str, str], Client] = {}
        self.rooms: dict[str, str] = {}
        self.sent: dict[str, list[str]] = {}
        self.media: list[Json] = []
        self.extra: Json = {}

    def of(self, name: str, device: str = "PHONE") -> Client:
        """The client of a person's device."""
        return self.clients[name, device]

    def admin(self, method: str, path: str, body: Json | None = None) -> Any:
        """One request to the admin API, as the admin."""
        with Client(self.admin_url, self.of("anna").token, ca=self.ca) as client:
            return client.request(method, ADMIN + path, body)

    def seed(self) -> Json:
        """Does everything, in the order in which it happened in 2021. Raises MatrixError."""
        started = time.monotonic()
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("people", self._people),
            ("profiles", self._profiles),
            ("encryption keys", self._keys),
            ("rooms", self._rooms),
            ("media", self._media),
            (f"{self.messages} messages", self._talk),
            ("life", lambda: seed_life.live(self)),
            ("waiting to-device messages", self._waiting),
            ("moderation", self._moderate),
        )
        for name, step in steps:
            begun = time.monotonic()
            step()
            self.say(f"{name}: {time.monotonic() - begun:.1f} s")
        result = self._record()
        for client in self.clients.values():
            client.close()
        self.say(f"seeded in {time.monotonic() - started:.1f} s")
        return result

    def _people(self) -> None:
        for person in people.SEEDED:
            if person.kind == "local":
                with Client(self.url, ca=self.ca) as nobody:
                    nobody.register_shared_secret(
                        people.REGISTRATION_SHARED_SECRET,
                        person.localpart,
                        person.password,
                        admin=person.admin,
                        base_url=self.admin_url,
                        inhibit_login=True,
                    )
            devices = list(person.devices)
            if person.localpart in people.WITNESSES:
                devices.append(people.WITNESS_DEVICE)
            for device in devices:
                client = Client(self.url, device_id=device, ca=self.ca)
                client.login_password(
                    person.localpart,
                    person.password,
                    initial_device_display_name=f"{person.name}s {device.capitalize()} 📱",
                )
                self.clients[person.localpart, device] = client
        self.admin(
            "PUT",
            f"/v2/users{quoted(people.BY_NAME['bruno'].user_id)}",
            {"threepids": [{"medium": "email", "address": "bruno@lale.test"}]},
        )

    def _profiles(self) -> None:
        for number, person in enumerate(people.SEEDED):
            client = self.of(person.localpart)
            client.set_profile("displayname", person.display)
            if person.avatar:
                mxc = self._upload(person.localpart, seed_media.avatar(number))
                client.set_profile("avatar_url", mxc)

    def _keys(self) -> None:
        for person in people.SEEDED:
            for device in person.devices:
                seed_crypto.upload_device(self.of(person.localpart, device))
        for name in ("anna", "bruno", "fiona"):
            person = people.BY_NAME[name]
            seed_crypto.upload_cross_signing(self.of(name), person.password, list(person.devices))
        seed_crypto.verify_user(self.of("anna"), people.BY_NAME["bruno"].user_id)
        seed_crypto.verify_user(self.of("bruno"), people.BY_NAME["anna"].user_id)

    def _rooms(self) -> None:
        for room in seed_rooms.ROOMS:
            self.rooms[room.name] = seed_rooms.make(room, self.of)
        seed_rooms.furnish(self.rooms, self.of)
        backup = seed_crypto.make_backup(
            self.of("bruno"), [self.rooms[name] for name in ("vault", "dm_anna_bruno")]
        )
        self.extra["backup"] = {"user_id": people.BY_NAME["bruno"].user_id, "version": backup}

    def _upload(self, name: str, file: seed_media.File) -> str:
        mxc = self.of(name).upload(file.data, file.content_type, file.name)
        entry: Json = {
            "mxc": mxc,
            "name": file.name,
            "content_type": file.content_type,
            "sha256": hashlib.sha256(file.data).hexdigest(),
            "uploader": people.BY_NAME[name].user_id,
            "quarantined": file.name == seed_media.QUARANTINED,
            "thumbnails": [],
        }
        # 1.40 makes no thumbnail of a picture of one pixel.
        if file.picture and "1x1" not in file.name:
            for width, height, method in seed_media.THUMBNAILS:
                data = self.of(name).thumbnail(mxc, width, height, method)
                digest = hashlib.sha256(data).hexdigest()
                entry["thumbnails"].append(
                    {"width": width, "height": height, "method": method, "sha256": digest}
                )
        self.media.append(entry)
        return mxc

    def _media(self) -> None:
        names = ("anna", "bruno", "clara", "fiona")
        rooms = ("lobby", "office", "lobby", "cafe")
        files = seed_media.files()

        def upload(which: int) -> None:
            name, room = names[which], rooms[which]
            for file in files[which :: len(names)]:
                mxc = self._upload(name, file)
                kind = "m.image" if file.picture else "m.file"
                info = {"mimetype": file.content_type, "size": len(file.data)}
                content = {"msgtype": kind, "body": file.name, "url": mxc, "info": info}
                if room in ("lobby", "office") or name == "fiona":
                    self.of(name).send_event(self.rooms[room], "m.room.message", content)

        each(upload, range(len(names)))
        self.media.sort(key=lambda entry: str(entry["name"]))

    def _talk(self) -> None:
        chance = random.Random(2021)
        talking = [room for room in seed_rooms.ROOMS if room.weight]
        weights = [room.weight for room in talking]
        lots: dict[str, list[tuple[str, str, Json]]] = {}
        for number in range(self.messages):
            room = chance.choices(talking, weights)[0]
            sender = chance.choice(room.members)
            kind, content = _message(number, room.name, chance)
            lots.setdefault(sender, []).append((room.name, kind, content))
        self.sent = {room.name: [] for room in talking}

        def speak(name: str) -> None:
            client = self.of(name)
            for room, kind, content in lots[name]:
                event = client.send_event(self.rooms[room], kind, content)
                self.sent[room].append(event)

        each(speak, lots)

    def _waiting(self) -> None:
        for name, device in WAITING_FOR:
            user = people.BY_NAME[name].user_id
            seed_crypto.waiting_messages(self.of("anna"), user, device, WAITING)

    def _moderate(self) -> None:
        for entry in self.media:
            if entry["quarantined"]:
                server, media = str(entry["mxc"]).removeprefix("mxc://").split("/")
                self.admin("POST", f"/v1/media/quarantine/{server}/{media}", {})
        user = people.BY_NAME[people.DEACTIVATED].user_id
        self.admin("POST", f"/v1/deactivate{quoted(user)}", {"erase": False})

    def _record(self) -> Json:
        users = []
        for person in people.SEEDED:
            own = {d: c for (name, d), c in self.clients.items() if name == person.localpart}
            gone = person.localpart == people.DEACTIVATED
            devices = [] if gone else [d["device_id"] for d in own["PHONE"].devices()]
            users.append(
                {
                    "id": person.user_id,
                    "localpart": person.localpart,
                    "password": person.password,
                    "kind": person.kind,
                    "display": person.display,
                    "admin": person.admin,
                    "deactivated": gone,
                    "devices": sorted(devices),
                    "tokens": {device: client.token for device, client in own.items()},
                }
            )
        verify = people.BY_NAME[people.RESERVED_FOR_VERIFY]
        return {
            "server_name": people.SERVER_NAME,
            "registration_shared_secret": people.REGISTRATION_SHARED_SECRET,
            "users": users,
            "verify": _credentials(verify),
            "witness": [
                {
                    **_credentials(people.BY_NAME[name]),
                    "device_id": people.WITNESS_DEVICE,
                    "access_token": self.of(name, people.WITNESS_DEVICE).token,
                }
                for name in people.WITNESSES
            ],
            "rooms": {
                name: {"id": room, "members": list(_members(name)), "sent": self.sent.get(name, [])}
                for name, room in self.rooms.items()
            },
            "media": self.media,
            "waiting": [
                {"user": people.BY_NAME[name].user_id, "device": device, "count": WAITING}
                for name, device in WAITING_FOR
            ],
            "messages": self.messages,
            **self.extra,
        }


def _members(name: str) -> tuple[str, ...]:
    found = seed_rooms.BY_NAME.get(name)
    return found.members if found else ()


def _credentials(person: people.Person) -> Json:
    return {
        "user_id": person.user_id,
        "localpart": person.localpart,
        "password": person.password,
        "kind": person.kind,
    }


def _message(number: int, room: str, chance: random.Random) -> tuple[str, Json]:
    if room == "vault":
        return "m.room.encrypted", {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": chance.randbytes(120).hex(),
            "device_id": "PHONE",
            "sender_key": chance.randbytes(32).hex(),
            "session_id": chance.randbytes(32).hex(),
        }
    text = f"{number}: " + " ".join(chance.choices(WORDS, k=chance.randint(2, 14)))
    if number % 97 == 0:
        text += " " + " ".join(chance.choices(WORDS, k=700))
    if number % 23 == 0:
        text += " Bruno Müller"
    content: Json = {"msgtype": ("m.text", "m.notice", "m.emote")[number % 17 % 3], "body": text}
    if number % 11 == 0:
        content["format"] = "org.matrix.custom.html"
        content["formatted_body"] = f"<b>{text}</b>"
    return "m.room.message", content


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.seed", description=__doc__)
    parser.add_argument("--url", default=people.PUBLIC_URL)
    parser.add_argument("--ca", help="file with the authority that signed the server's certificate")
    parser.add_argument("--admin-url", help="where the admin API is served (default: --url)")
    parser.add_argument("--admin-pid", type=int, help="reach --admin-url inside its machine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--messages", type=int, default=2000)
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, flush=True)

    with reached(given.admin_url or given.url, given.admin_pid) as admin_url:
        record = Seeder(given.url, given.ca, admin_url, given.messages, say).seed()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    given.out.chmod(0o600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
