"""The meeting: two users do what people do on a chat server, through its public name.

Held after each milestone, it shows that the server works for a client, which no health check
does. All that fails is collected; a check whose ground is missing says so. Nothing stays behind but
an empty room and deactivated throw-away users.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from saltworks.matrix import Client, Json, MatrixError

TO_DEVICE = "saltworks.meeting"
# Bound of each attempt of a request, and of each wait of a check.
CHECK_SECONDS = 20.0
# How many of an account's rooms, and events in each, are looked at for something old.
OLD_ROOMS, OLD_EVENTS = 10, 300
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"


class Check(NamedTuple):
    """One check of the meeting; `detail` says what was seen, or what is wrong."""

    check: str
    ok: bool
    detail: str


class Failed(Exception):
    """What a check saw is not what it must see."""


def hold(
    base_url: str,
    *,
    guest: Mapping[str, Any],
    host: Mapping[str, Any] | None = None,
    password_user: tuple[str, str] | None = None,
    connect_to: str | None = None,
    old_before: float | None = None,
) -> list[Check]:
    """Holds the meeting and returns every check, in order; never raises for a broken server.

    :param base_url: the public address, `https://chat.example.org`.
    :param guest: the second user: `user_id`, `access_token`, and, if it is to be deactivated at
        the end, `password`.
    :param host: the first user, as `guest`; not used with a password account.
    :param password_user: name and password of an account of the password provider (LDAP), which
        is the first user then.
    :param connect_to: address of the front to meet at, whatever the public name's record says.
    :param old_before: Unix time; the password account looks in its own rooms for something written
        before it and reads that. What it finds depends on the account; the detail says it.
    """
    meeting = _Meeting(base_url, connect_to)
    return list(meeting.run(guest, host, password_user, old_before))


def png(width: int, height: int) -> bytes:
    """A small colour gradient as PNG; width and height in pixels."""
    rows = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (x * 3 % 256, y * 3 % 256, 90))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        PNG_MAGIC
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class _Meeting:
    def __init__(self, base_url: str, connect_to: str | None) -> None:
        self.seconds = CHECK_SECONDS
        self.word = "meeting" + secrets.token_hex(6)
        self.room = ""
        self.said: dict[str, str] = {}
        self.since: dict[str, str | None] = {}
        self.seen: dict[str, list[Json]] = {"host": [], "guest": []}
        self.devices: dict[str, list[Json]] = {"host": [], "guest": []}
        self.mxc = ""
        self.image = png(96, 64)
        self.passed: set[str] = set()
        self.passwords: dict[str, str] = {}
        self.clients = {
            name: Client(
                base_url, timeout=self.seconds, retry_for=self.seconds, connect_to=connect_to
            )
            for name in ("host", "guest")
        }

    def run(
        self,
        guest: Mapping[str, Any],
        host: Mapping[str, Any] | None,
        password_user: tuple[str, str] | None,
        old_before: float | None,
    ) -> Iterator[Check]:
        try:
            if password_user is not None:
                yield self._check("password login", lambda: self._login(*password_user))
                ground = ("password login", "second user")
            else:
                assert host is not None, "a first user, or a password account"
                yield self._check("first user", lambda: self._arrive("host", host))
                ground = ("first user", "second user")
            yield self._check("second user", lambda: self._arrive("guest", guest))
            yield self._check("room", self._make_room, *ground)
            yield self._check("invite and join", self._join, "room")
            yield self._check("message by sync", self._message, "invite and join")
            yield self._check("reply by sync", self._reply, "message by sync")
            yield self._check("media up", self._upload, ground[0])
            yield self._check("media down", self._download, "media up", ground[1])
            yield self._check("thumbnail", self._thumbnail, "media up")
            yield self._check("to-device", self._to_device, *ground)
            yield self._check("search", self._search, "message by sync")
            if old_before is not None and password_user is not None:
                yield self._check(
                    "old data", lambda: old_news(self.clients["host"], old_before), ground[0]
                )
            yield self._check("goodbye", self._goodbye)
        finally:
            for client in self.clients.values():
                client.close()

    def _check(self, name: str, look: Callable[[], str], *needs: str) -> Check:
        missing = [need for need in needs if need not in self.passed]
        if missing:
            return Check(name, False, f"not tried, because it needs: {', '.join(missing)}")
        try:
            detail = look()
        except (MatrixError, Failed) as error:
            return Check(name, False, str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the answer has not the form it should: {type(error).__name__}: {error}"
            return Check(name, False, what)
        self.passed.add(name)
        return Check(name, True, detail)

    # --- users ------------------------------------------------------------------------------

    def _login(self, user: str, password: str) -> str:
        client = self.clients["host"]
        client.login_password(user, password, initial_device_display_name="Saltworks meeting")
        return f"{client.user_id} logged in by password"

    def _arrive(self, name: str, given: Mapping[str, Any]) -> str:
        client = self.clients[name]
        client.token = given["access_token"]
        if given.get("password"):
            self.passwords[name] = given["password"]
        who = client.whoami()
        client.user_id, client.device_id = who["user_id"], who.get("device_id")
        return f"{client.user_id} is there"

    # --- the room ---------------------------------------------------------------------------

    def _make_room(self) -> str:
        self.room = self.clients["host"].create_room(
            preset="private_chat", name=f"Saltworks meeting {self.word}"
        )
        return self.room

    def _join(self) -> str:
        host, guest = self.clients["host"], self.clients["guest"]
        host.invite(self.room, str(guest.user_id))
        self._wait("guest", "the invitation", lambda answer: self.room in _rooms(answer, "invite"))
        guest.join(self.room)
        self._wait("guest", "the joined room", lambda answer: self.room in _rooms(answer, "join"))
        return f"{guest.user_id} was invited and is in"

    def _message(self) -> str:
        text = f"Hello from {self.word}"
        event = self.clients["host"].send_text(self.room, text)
        self.said["message"] = event
        self._wait("guest", f"the message {event}", lambda _: self._shown("guest", event, text))
        return f"{event} was shown to the other"

    def _reply(self) -> str:
        text = f"Hello back, {self.word}"
        content = {
            "msgtype": "m.text",
            "body": text,
            "m.relates_to": {"m.in_reply_to": {"event_id": self.said["message"]}},
        }
        event = self.clients["guest"].send_event(self.room, "m.room.message", content)
        self._wait("host", f"the reply {event}", lambda _: self._shown("host", event, text))
        return f"{event} was shown to the first"

    def _search(self) -> str:
        deadline = time.monotonic() + self.seconds
        wanted = self.said["message"]
        while True:
            found = self.clients["guest"].search(self.word, [self.room])
            ids = [row["result"]["event_id"] for row in found.get("results", [])]
            if wanted in ids:
                return f"found {wanted}"
            if time.monotonic() > deadline:
                raise Failed(f"searching for {self.word!r} gave {ids}, not {wanted}")
            time.sleep(0.3)

    # --- media and devices ------------------------------------------------------------------

    def _upload(self) -> str:
        self.mxc = self.clients["host"].upload(self.image, "image/png", f"{self.word}.png")
        return f"{self.mxc}, {len(self.image)} bytes"

    def _download(self) -> str:
        found = self.clients["guest"].download(self.mxc)
        if found != self.image:
            raise Failed(
                f"{self.mxc}: {len(found)} bytes came back, not the {len(self.image)} sent"
            )
        return f"{len(found)} bytes, the same"

    def _thumbnail(self) -> str:
        found = self.clients["host"].thumbnail(self.mxc, 32, 32)
        if not found.startswith((PNG_MAGIC, JPEG_MAGIC)):
            raise Failed(f"the thumbnail of {self.mxc} is no picture: it begins {found[:16]!r}")
        return f"{len(found)} bytes"

    def _to_device(self) -> str:
        host, guest = self.clients["host"], self.clients["guest"]
        to = {str(host.user_id): {host.device_id or "*": {"word": self.word}}}
        guest.to_device(TO_DEVICE, to)
        self._wait(
            "host",
            "the to-device message",
            lambda _: any(event["content"].get("word") == self.word for event in self._got("host")),
        )
        return f"came to {host.device_id}"

    def _got(self, name: str) -> list[Json]:
        return [event for event in self.devices[name] if event["type"] == TO_DEVICE]

    # --- the end ----------------------------------------------------------------------------

    def _goodbye(self) -> str:
        problems = []
        for name, client in self.clients.items():
            if client.token is None:
                continue
            try:
                if self.room and "room" in self.passed:
                    # A guest who never came in cannot leave, which is no matter here.
                    with contextlib.suppress(MatrixError):
                        client.leave(self.room)
                if name in self.passwords:
                    client.deactivate(self.passwords[name])
                elif name == "host":
                    client.logout()
            except MatrixError as error:
                problems.append(f"{client.user_id}: {error}")
        if problems:
            raise Failed("; ".join(problems))
        return "throw-away users deactivated, sessions ended"

    # --- waiting ----------------------------------------------------------------------------

    def _shown(self, name: str, event_id: str, text: str) -> bool:
        for event in self.seen[name]:
            if event["event_id"] == event_id:
                if event["content"].get("body") != text:
                    raise Failed(f"{event_id} came as {event['content']!r}, not as {text!r}")
                return True
        return False

    def _wait(self, name: str, what: str, there: Callable[[Json], bool]) -> None:
        """Long-polls as one of the two until it is there; Failed after the bound."""
        deadline = time.monotonic() + self.seconds
        while True:
            since = self.since.get(name)
            left = deadline - time.monotonic()
            poll = 0 if since is None else int(max(0.0, min(left, 5.0)) * 1000)
            answer = self.clients[name].sync(since, poll)
            self.since[name] = answer["next_batch"]
            self.devices[name] += answer.get("to_device", {}).get("events", [])
            room = _rooms(answer, "join").get(self.room, {})
            self.seen[name] += room.get("timeline", {}).get("events", [])
            if there(answer):
                return
            if time.monotonic() > deadline:
                raise Failed(f"/sync of the {name} did not show {what} in {self.seconds:.0f} s")


def old_news(client: Client, before: float) -> str:
    """Reads something that was written in one of the account's rooms before a time.

    :param client: signed in.
    :param before: Unix time.
    :returns: what was read, or in words that the account has nothing as old.
    :raises Failed: when an old event does not come back the same, or its file is empty.
    """
    first = client.sync(None, 0, {"room": {"timeline": {"limit": 1}}})
    rooms = _rooms(first, "join")
    event, room = None, ""
    for room, row in itertools.islice(rooms.items(), OLD_ROOMS):
        pages = itertools.islice(client.history(room, row["timeline"]["prev_batch"]), OLD_EVENTS)
        old = [found for found in pages if _is_old_word(found, before)]
        event = next((found for found in old if _mxc(found)), old[0] if old else None)
        if event is not None:
            break
    if event is None:
        return (
            f"nothing compared: {client.user_id} is in {len(rooms)} rooms and sees nothing there "
            "from before; invite it to a room that was in use"
        )
    again = client.event(room, event["event_id"])
    if again["content"] != event["content"]:
        raise Failed(f"{event['event_id']} is not the same by its id as in the room's history")
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(event["origin_server_ts"] / 1000))
    said = f"{event['event_id']} of {event['sender']}, {when} UTC"
    if mxc := _mxc(event):
        size = len(client.download(mxc))
        if not size:
            raise Failed(f"the file {mxc} of {said} came back empty")
        said += f", with its file of {size} bytes"
    return f"{said}, read back"


def _is_old_word(event: Json, before: float) -> bool:
    return (
        event["type"] in ("m.room.message", "m.room.encrypted")
        and bool(event["content"])
        and event["origin_server_ts"] < before * 1000
    )


def _mxc(event: Json) -> str | None:
    url = event["content"].get("url")
    return url if isinstance(url, str) and url.startswith("mxc://") else None


def _rooms(answer: Json, how: str) -> Json:
    found: Json = answer.get("rooms", {}).get(how, {})
    return found
