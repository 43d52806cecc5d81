"""A small synchronous Matrix client, on `requests` (which salt brings along).

It speaks to Synapse 1.40 as well as to the release that follows it, so it uses the `r0` paths,
which both serve. How it repeats requests is told in `matrix_http`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from json import dumps
from typing import Any
from urllib.parse import quote

from saltworks.matrix_http import STALE, Http, Json, MatrixError, Trouble, quoted

__all__ = ["CLIENT", "MEDIA", "STALE", "Client", "Json", "MatrixError", "Trouble", "quoted"]

CLIENT = "/_matrix/client/r0"
MEDIA = "/_matrix/media/r0"


def shared_secret_mac(secret: str, nonce: str, user: str, password: str, admin: bool) -> str:
    """The proof which `POST /_synapse/admin/v1/register` wants (Synapse, register_api)."""
    parts = (nonce, user, password, "admin" if admin else "notadmin")
    return hmac.new(secret.encode(), "\0".join(parts).encode(), hashlib.sha1).hexdigest()


class Client(Http):
    """One user's session with a homeserver.

    base_url: `https://chat.example.org`, no path. ca: file with the authorities to trust (default:
    the system's). timeout: seconds for one attempt. retry_for: seconds, from the first attempt on,
    in which another may still begin. on_trouble: called with a `Trouble` for each failed attempt.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 30,
        *,
        retry_for: float = 60,
        on_trouble: Callable[[Trouble], None] | None = None,
        connect_to: str | None = None,
    ) -> None:
        super().__init__(
            base_url,
            token,
            ca,
            timeout,
            retry_for=retry_for,
            on_trouble=on_trouble,
            connect_to=connect_to,
        )
        self.user_id = user_id
        self.device_id = device_id
        self.media_needs_token: bool | None = None
        self._txn_prefix = f"sw{os.getpid()}.{time.time_ns()}.{random.getrandbits(32):x}"
        self._txn_numbers = itertools.count()

    def new_txn_id(self) -> str:
        """A transaction id that no other client uses."""
        return f"{self._txn_prefix}.{next(self._txn_numbers)}"

    def _dict(self, method: str, path: str, json: Any = None, **more: Any) -> Json:
        answer: Json = self.request(method, path, json, **more)
        return answer

    # --- sessions ---------------------------------------------------------------------------

    def versions(self) -> list[str]:
        """The versions of the client API which the server claims."""
        return list(self.request("GET", "/_matrix/client/versions")["versions"])

    def login(self, identifier: Json, password: str, **extra: Any) -> Json:
        """Logs in by any identifier (`{"type": "m.id.thirdparty", ...}`) and keeps the token."""
        body = {
            "type": "m.login.password",
            "identifier": identifier,
            "password": password,
            **extra,
        }
        if self.device_id:
            body.setdefault("device_id", self.device_id)
        return self._signed_in(self.request("POST", f"{CLIENT}/login", body))

    def login_password(self, user: str, password: str, **extra: Any) -> Json:
        """Logs in a user by localpart or user id."""
        return self.login({"type": "m.id.user", "user": user}, password, **extra)

    def register_shared_secret(
        self,
        secret: str,
        user: str,
        password: str,
        *,
        admin: bool = False,
        base_url: str | None = None,
        **extra: Any,
    ) -> Json:
        """Makes a user by the registration shared secret and keeps its token.

        base_url: where the admin API is served, if not at the client's own address (a front door
        that passes only `/_matrix` on answers 404).
        """
        path = "/_synapse/admin/v1/register"
        with contextlib.ExitStack() as stack:
            asked = self
            if base_url is not None:
                asked = stack.enter_context(
                    Client(base_url, ca=self.ca, timeout=self.timeout, on_trouble=self.on_trouble)
                )
            nonce = asked.request("GET", path)["nonce"]
            body = {
                "nonce": nonce,
                "username": user,
                "password": password,
                "admin": admin,
                "mac": shared_secret_mac(secret, nonce, user, password, admin),
                **extra,
            }
            return self._signed_in(asked.request("POST", path, body))

    def _signed_in(self, answer: Json) -> Json:
        self.token = answer.get("access_token")
        self.user_id = answer["user_id"]
        self.device_id = answer.get("device_id")
        return answer

    def whoami(self) -> Json:
        """Who the token belongs to."""
        return self._dict("GET", f"{CLIENT}/account/whoami")

    def logout(self) -> None:
        """Ends the session and forgets the token."""
        self.request("POST", f"{CLIENT}/logout", {})
        self.token = None

    def deactivate(self, password: str, *, erase: bool = True) -> None:
        """Deactivates the own account for good, proving it by the password."""
        identifier = {"type": "m.id.user", "user": self.user_id}
        auth: Json = {"type": "m.login.password", "identifier": identifier, "password": password}
        path = f"{CLIENT}/account/deactivate"
        try:
            self.request("POST", path, {"erase": erase, "auth": auth}, expect=(401,))
        except MatrixError as error:
            if error.status != 401:
                raise
            # The first answer only hands out the session of the interactive proof.
            auth["session"] = error.retry_session
            self.request("POST", path, {"erase": erase, "auth": auth})
        self.token = None

    # --- rooms ------------------------------------------------------------------------------

    def create_room(self, **body: Any) -> str:
        """Makes a room from the fields of `POST /createRoom`; returns its id."""
        return str(self.request("POST", f"{CLIENT}/createRoom", body)["room_id"])

    def join(self, room: str) -> str:
        """Joins a room by id or alias; returns its id."""
        return str(self.request("POST", f"{CLIENT}/join{quoted(room)}", {})["room_id"])

    def invite(self, room: str, user: str) -> None:
        """Invites a user."""
        self.membership(room, "invite", user_id=user)

    def leave(self, room: str) -> None:
        """Leaves a room, or refuses an invitation to it."""
        self.membership(room, "leave")

    def membership(self, room: str, action: str, **body: Any) -> Json:
        """`POST /rooms/{room}/{action}`: invite, leave, kick, ban, unban, forget, upgrade, ..."""
        return self._dict("POST", f"{CLIENT}/rooms{quoted(room, action)}", body)

    def send_event(self, room: str, kind: str, content: Json, txn_id: str | None = None) -> str:
        """Sends an event under a transaction id (made here if none is given); returns its id."""
        path = f"{CLIENT}/rooms{quoted(room, 'send', kind, txn_id or self.new_txn_id())}"
        return str(self.request("PUT", path, content)["event_id"])

    def send_text(self, room: str, text: str, txn_id: str | None = None) -> str:
        """Sends a plain text message; returns its event id."""
        return self.send_event(room, "m.room.message", {"msgtype": "m.text", "body": text}, txn_id)

    def send_state(self, room: str, kind: str, content: Json, state_key: str = "") -> str:
        """Sets a piece of room state; returns the event id."""
        path = f"{CLIENT}/rooms{quoted(room, 'state', kind)}/{quote(state_key, safe='')}"
        return str(self.request("PUT", path, content)["event_id"])

    def redact(
        self, room: str, event: str, reason: str | None = None, txn_id: str | None = None
    ) -> str:
        """Redacts an event; returns the id of the redaction."""
        path = f"{CLIENT}/rooms{quoted(room, 'redact', event, txn_id or self.new_txn_id())}"
        return str(self.request("PUT", path, {"reason": reason} if reason else {})["event_id"])

    def room_state(self, room: str) -> list[Json]:
        """All current state events of a room."""
        return list(self.request("GET", f"{CLIENT}/rooms{quoted(room, 'state')}"))

    def event(self, room: str, event: str) -> Json:
        """One event by its id."""
        return self._dict("GET", f"{CLIENT}/rooms{quoted(room, 'event', event)}")

    def members(self, room: str) -> list[Json]:
        """The membership events of a room."""
        return list(self.request("GET", f"{CLIENT}/rooms{quoted(room, 'members')}")["chunk"])

    def messages(
        self,
        room: str,
        from_token: str | None = None,
        direction: str = "b",
        limit: int = 100,
        to_token: str | None = None,
    ) -> Json:
        """One page of a room's history: `chunk`, `start`, `end` (absent after the last page)."""
        params: Json = {"dir": direction, "limit": limit, "from": from_token, "to": to_token}
        path = f"{CLIENT}/rooms{quoted(room, 'messages')}"
        return self._dict("GET", path, params={k: v for k, v in params.items() if v is not None})

    def history(self, room: str, from_token: str, limit: int = 100) -> Iterator[Json]:
        """Every event of a room from a token backwards to its beginning, newest first."""
        token: str | None = from_token
        while token:
            page = self.messages(room, token, limit=limit)
            yield from page["chunk"]
            following = page.get("end")
            # 1.40 goes on handing out a token after the last page, with an empty chunk.
            token = following if page["chunk"] and following != token else None

    def sync(
        self,
        since: str | None = None,
        timeout_ms: int = 0,
        filter: str | Json | None = None,
        *,
        retry: bool = True,
        **extra: Any,
    ) -> Json:
        """One `/sync`. filter: an id or the filter itself. extra: more parameters."""
        params: Json = {"timeout": timeout_ms, **extra}
        if since is not None:
            params["since"] = since
        if filter is not None:
            params["filter"] = filter if isinstance(filter, str) else dumps(filter)
        allowed = timeout_ms / 1000 + self.timeout
        return self._dict("GET", f"{CLIENT}/sync", params=params, timeout=allowed, retry=retry)

    def receipt(self, room: str, event: str, kind: str = "m.read") -> None:
        """Marks an event as read."""
        self.request("POST", f"{CLIENT}/rooms{quoted(room, 'receipt', kind, event)}", {})

    def read_markers(self, room: str, event: str) -> None:
        """Sets the fully-read marker and the receipt."""
        body = {"m.fully_read": event, "m.read": event}
        self.request("POST", f"{CLIENT}/rooms{quoted(room, 'read_markers')}", body)

    def search(self, term: str, rooms: list[str] | None = None) -> Json:
        """Full-text search for messages; the `room_events` part of the answer."""
        wanted: Json = {"search_term": term, "order_by": "recent"}
        if rooms is not None:
            wanted["filter"] = {"rooms": rooms}
        body = {"search_categories": {"room_events": wanted}}
        found: Json = self._dict("POST", f"{CLIENT}/search", body)["search_categories"]
        return dict(found["room_events"])

    # --- accounts, devices, keys ------------------------------------------------------------

    def profile(self, user: str) -> Json:
        """Display name and avatar of a user."""
        return self._dict("GET", f"{CLIENT}/profile{quoted(user)}")

    def set_profile(self, field: str, value: str) -> None:
        """Sets the own `displayname` or `avatar_url`."""
        path = f"{CLIENT}/profile{quoted(self._me(), field)}"
        self.request("PUT", path, {field: value})

    def account_data(self, kind: str, room: str | None = None) -> Json:
        """The own account data of one type, global or of a room."""
        return self._dict("GET", self._account_data_path(kind, room))

    def set_account_data(self, kind: str, content: Json, room: str | None = None) -> None:
        """Sets the own account data of one type, global or of a room."""
        self.request("PUT", self._account_data_path(kind, room), content)

    def _account_data_path(self, kind: str, room: str | None) -> str:
        parts = ["user", self._me(), *(["rooms", room] if room else []), "account_data", kind]
        return CLIENT + quoted(*parts)

    def devices(self) -> list[Json]:
        """The own devices."""
        return list(self.request("GET", f"{CLIENT}/devices")["devices"])

    def to_device(
        self, kind: str, messages: Mapping[str, Mapping[str, Json]], txn_id: str | None = None
    ) -> None:
        """Sends messages to devices: `{user: {device or "*": content}}`."""
        path = f"{CLIENT}/sendToDevice{quoted(kind, txn_id or self.new_txn_id())}"
        self.request("PUT", path, {"messages": messages})

    def keys_upload(self, **body: Any) -> Json:
        """Uploads device keys, one-time keys, fallback keys."""
        return self._dict("POST", f"{CLIENT}/keys/upload", body)

    def keys_query(self, users: list[str]) -> Json:
        """The device and cross-signing keys of users."""
        body: Json = {"device_keys": {user: [] for user in users}}
        return self._dict("POST", f"{CLIENT}/keys/query", body)

    def push_rules(self) -> Json:
        """The own push rules."""
        return self._dict("GET", f"{CLIENT}/pushrules/")

    # --- media ------------------------------------------------------------------------------

    def upload(self, data: bytes, content_type: str, filename: str | None = None) -> str:
        """Uploads a file; returns its `mxc://` address."""
        answer = self.request(
            "POST",
            f"{MEDIA}/upload",
            data=data,
            headers={"Content-Type": content_type},
            params={"filename": filename} if filename else None,
        )
        return str(answer["content_uri"])

    def download(self, mxc: str) -> bytes:
        """The bytes of a file, by the open or the authenticated path, whichever serves it."""
        return self._media("download", mxc, None)

    def thumbnail(self, mxc: str, width: int, height: int, method: str = "scale") -> bytes:
        """A thumbnail of an image, in pixels; method `scale` or `crop`."""
        return self._media("thumbnail", mxc, {"width": width, "height": height, "method": method})

    def _media(self, what: str, mxc: str, params: Json | None) -> bytes:
        if not mxc.startswith("mxc://"):
            raise ValueError(f"media address {mxc!r} does not start with mxc://")
        tail = quoted(what, *mxc.removeprefix("mxc://").split("/", 1))
        if self.media_needs_token is None:
            self.media_needs_token = "v1.11" in self.versions()
        ways = {True: "/_matrix/client/v1/media", False: MEDIA}
        first = self.media_needs_token
        # 1.40 does not know the authenticated path (400 M_UNRECOGNIZED); the new release answers
        # 404 on the open one for media uploaded since authentication is asked for.
        try:
            path = ways[first] + tail
            return bytes(self.request("GET", path, params=params, raw=True, expect=(400, 404)))
        except MatrixError as error:
            if error.status not in (400, 404):
                raise
            other = ways[not first] + tail
            try:
                found = self.request("GET", other, params=params, raw=True, expect=(400, 404))
            except MatrixError:
                raise error from None
            self.media_needs_token = not first
            return bytes(found)

    def _me(self) -> str:
        if self.user_id is None:
            raise ValueError("this Matrix client has no user id: log in, or pass user_id")
        return self.user_id
