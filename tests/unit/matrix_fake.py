"""A homeserver of a few hundred lines, in memory, which can be told to misbehave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
Fault = str | None
PICTURE = b"\x89PNG\r\n\x1a\nsmall"


class FakeHomeserver:
    """Serves on a loopback port while it is entered.

    fault: asked for each request, by method, path and how often that very request came; answers
    None or one of: `502`, `reset` (closed before the request is done), `cut` (done, then closed),
    `429`, `lose` (an event is acknowledged and forgotten), `twice` (kept under two ids),
    `hide` (an event is kept, but not shown by /sync to `hidden_from`), `slow`, `spoil` (media).
    page: how many events one /sync shows of a room before it says `limited`.
    """

    def __init__(
        self,
        fault: Callable[[str, str, int], Fault] = lambda method, path, count: None,
        page: int = 100,
        hidden_from: str = "",
        authenticated_media: bool = True,
    ) -> None:
        self.fault = fault
        self.page = page
        self.hidden_from = hidden_from
        self.authenticated_media = authenticated_media
        self.change = threading.Condition()
        self.events: list[Json] = []
        self.sent: dict[str, str] = {}
        self.devices: list[tuple[str, Json]] = []
        self.media: dict[str, bytes] = {}
        self.invited: set[str] = set()
        self.gone: set[str] = set()
        self.counts: dict[tuple[str, str], int] = {}
        self.log: list[tuple[str, str]] = []
        self.closing = False
        self.slow = threading.Event()
        handler = type("Handler", (_Handler,), {"home": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHomeserver:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.change:
            self.closing = True
            self.change.notify_all()
        self.server.shutdown()
        self.server.server_close()

    def users(self, count: int) -> list[Json]:
        """Credentials which it accepts: the token is the user's localpart."""
        return [
            {"user_id": f"@u{n}:fake", "access_token": f"u{n}", "device_id": f"D{n}"}
            for n in range(count)
        ]

    def add(self, user: str, kind: str, content: Json) -> str:
        """Keeps an event; returns its id. The caller holds the lock."""
        event = f"$e{len(self.events)}"
        self.events.append(
            {
                "event_id": event,
                "type": kind,
                "sender": user,
                "content": content,
                "hidden": False,
                "origin_server_ts": 1000 * len(self.events),
            }
        )
        self.change.notify_all()
        return event


class _Handler(BaseHTTPRequestHandler):
    home: FakeHomeserver
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def _any(self) -> None:
        home = self.home
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        path = re.sub(r"^/_matrix/client/(r0|v3)", "", split.path)
        asked = {key: values[0] for key, values in parse_qs(split.query).items()}
        with home.change:
            count = home.counts[self.command, path] = home.counts.get((self.command, path), 0) + 1
            home.log.append((self.command, path))
        fault = home.fault(self.command, path, count)
        if fault in ("502", "429"):
            self._answer(int(fault), {"errcode": "M_X", "retry_after_ms": 10})
            return
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "slow":
            home.slow.wait(0.6)
        user = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, answer = self._do(path, body, asked, f"@{user}:fake", fault)
        if fault == "cut":
            self.close_connection = True
            return
        self._answer(status, answer)

    do_GET = do_PUT = do_POST = _any

    def _answer(self, status: int, answer: Json | bytes) -> None:
        raw = isinstance(answer, bytes)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(
        self, path: str, body: bytes, asked: dict[str, str], user: str, fault: Fault
    ) -> tuple[int, Json | bytes]:
        home = self.home
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if "media" in parts:
            return self._media(path, parts, body, fault)
        given: Json = json.loads(body) if body else {}
        with home.change:
            match (self.command, *parts):
                case ("PUT", "rooms", _, "send", kind, txn):
                    return 200, {"event_id": self._send(user, kind, txn, given, fault)}
                case ("PUT", "sendToDevice", kind, txn):
                    if txn not in home.sent:
                        home.sent[txn] = txn
                        for to, devices in given["messages"].items():
                            event = {"type": kind, "content": next(iter(devices.values()))}
                            home.devices += [(to, event)] * (2 if fault == "twice" else 1)
                        home.change.notify_all()
                case ("GET", "sync"):
                    return 200, self._sync(user, asked)
                case ("GET", "rooms", _, "messages"):
                    return 200, self._messages(asked)
                case ("GET", "rooms", _, "event", event):
                    return 200, next(row for row in home.events if row["event_id"] == event)
                case ("POST", "createRoom"):
                    return 200, {"room_id": "!room:fake"}
                case ("POST", "join", room):
                    return 200, {"room_id": room}
                case ("POST", "rooms", _, "invite"):
                    home.invited.add(given["user_id"])
                case ("POST", "login"):
                    name = given["identifier"]["user"]
                    if given["password"] != "right":
                        return 403, {"errcode": "M_FORBIDDEN", "error": "Invalid password"}
                    return 200, _session(name)
                case (_, "_synapse", "admin", "v1", "register"):
                    name = given.get("username", "")
                    return 200, {"nonce": "n"} if self.command == "GET" else _session(name)
                case ("GET", "account", "whoami"):
                    return 200, {"user_id": user, "device_id": "D"}
                case ("POST", "account", "deactivate"):
                    if "session" not in given["auth"]:
                        return 401, {"session": "s1", "flows": []}
                    home.gone.add(user)
                case ("POST", "search"):
                    return 200, self._search(given)
                case ("GET", "_matrix", "client", "versions"):
                    new = ["v1.11"] if home.authenticated_media else []
                    return 200, {"versions": ["r0.6.1", *new]}
                case _:
                    pass
        return 200, {}

    def _send(self, user: str, kind: str, txn: str, given: Json, fault: Fault) -> str:
        home = self.home
        if txn in home.sent:
            return home.sent[txn]
        if fault == "lose":
            home.sent[txn] = "$lost" + txn
            return home.sent[txn]
        home.sent[txn] = home.add(user, kind, given)
        if fault == "hide":
            home.events[-1]["hidden"] = True
        if fault == "twice":
            home.add(user, kind, given)
        return home.sent[txn]

    def _sync(self, user: str, asked: dict[str, str]) -> Json:
        home = self.home
        since, seen_devices = (int(n) for n in asked.get("since", "0_0").split("_"))
        quiet = '"rooms":[]' in asked.get("filter", "").replace(" ", "")

        def news() -> bool:
            events = not quiet and len(home.events) > since
            return events or any(to == user for to, _ in home.devices[seen_devices:])

        # A real server would wait up to 30 s; what a test looks at comes sooner.
        home.change.wait_for(
            lambda: home.closing or news(), min(0.2, int(asked.get("timeout", 0)) / 1000)
        )
        fresh = [] if quiet else home.events[since:]
        shown = fresh[-home.page :]
        visible = [e for e in shown if not (e["hidden"] and user == home.hidden_from)]
        first = len(home.events) - len(shown)
        timeline = {
            "events": visible,
            "limited": len(fresh) > len(shown),
            "prev_batch": f"{first}_0",
        }
        rooms: Json = {"join": {"!room:fake": {"timeline": timeline}}}
        if user in home.invited:
            rooms["invite"] = {"!room:fake": {}}
        devices = [event for to, event in home.devices[seen_devices:] if to == user]
        return {
            "next_batch": f"{since if quiet else len(home.events)}_{len(home.devices)}",
            "rooms": {} if quiet else rooms,
            "to_device": {"events": devices},
        }

    def _messages(self, asked: dict[str, str]) -> Json:
        end = int(asked["from"].split("_")[0])
        start = max(0, end - int(asked["limit"]))
        page: Json = {"chunk": self.home.events[start:end][::-1], "start": asked["from"]}
        return {**page, "end": f"{start}_0"} if start else page

    def _search(self, given: Json) -> Json:
        term = given["search_categories"]["room_events"]["search_term"]
        found = [
            {"result": event}
            for event in self.home.events
            if term in str(event["content"].get("body"))
        ]
        return {"search_categories": {"room_events": {"results": found}}}

    def _media(
        self, path: str, parts: list[str], body: bytes, fault: Fault
    ) -> tuple[int, Json | bytes]:
        home = self.home
        if parts[-1] == "upload":
            name = f"m{len(home.media)}"
            home.media[name] = body + b"!" if fault == "spoil" else body
            return 200, {"content_uri": f"mxc://fake/{name}"}
        authenticated = path.startswith("/_matrix/client/v1/media")
        if authenticated != home.authenticated_media:
            refused = "M_NOT_FOUND" if home.authenticated_media else "M_UNRECOGNIZED"
            return 404 if home.authenticated_media else 400, {"errcode": refused}
        if "thumbnail" in parts:
            return 200, PICTURE
        return 200, home.media[parts[-1]]


def _session(name: str) -> Json:
    return {"user_id": f"@{name}:fake", "access_token": name, "device_id": f"D{name}"}
