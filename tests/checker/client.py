"""A Matrix client that goes to the process it is told, and says what it was answered."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

CLIENT = "/_matrix/client/v3"
TIMEOUT = 60
_TRANSACTIONS = itertools.count()


class Answered(Exception):
    """Not what was asked for: an error of the server's, or none at all."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"{status} {what}")
        self.status = status


@dataclass(frozen=True)
class Account:
    """Whoever asks."""

    user_id: str
    token: str

    @property
    def path(self) -> str:
        return f"{CLIENT}/user/{quote(self.user_id)}"


class Http:
    """Keeps its connections, one set per thread."""

    def __init__(self) -> None:
        self._own = threading.local()

    def ask(
        self, base: str, method: str, path: str, token: str = "", body: Any = None, **query: Any
    ) -> dict[str, Any]:
        """:raises Answered: no good answer; status 0 if there was none."""
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            got = self._own.session.request(
                method, base + path, params=query, json=body, headers=headers, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise Answered(0, f"{method} {path}: {error}") from None
        if got.status_code != 200:
            raise Answered(got.status_code, f"{method} {path}: {got.text[:200]}")
        loaded: dict[str, Any] = got.json()
        return loaded

    def register(self, base: str, name: str, password: str) -> Account:
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": password}
        got = self.ask(base, "POST", f"{CLIENT}/register", body=body)
        return Account(got["user_id"], got["access_token"])

    def login(self, base: str, user_id: str, password: str) -> Account:
        body = {"type": "m.login.password", "password": password,
                "identifier": {"type": "m.id.user", "user": user_id}}
        got = self.ask(base, "POST", f"{CLIENT}/login", body=body)
        return Account(got["user_id"], got["access_token"])

    def send(self, base: str, who: Account, room: str, text: str) -> str:
        """A message; its event id."""
        path = f"{CLIENT}/rooms/{quote(room)}/send/m.room.message/x{next(_TRANSACTIONS)}"
        body = {"msgtype": "m.text", "body": text}
        return str(self.ask(base, "PUT", path, who.token, body)["event_id"])
