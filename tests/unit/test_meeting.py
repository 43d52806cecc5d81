"""The meeting against a server that works, and against ones that do not."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from saltworks import meeting
from saltworks.matrix import Client
from saltworks.meeting import PNG_MAGIC, Check, hold, png

from tests.unit.matrix_fake import FakeHomeserver

EVERYTHING = [
    "password login",
    "second user",
    "room",
    "invite and join",
    "message by sync",
    "reply by sync",
    "media up",
    "media down",
    "thumbnail",
    "to-device",
    "search",
    "old data",
    "goodbye",
]


def at(method: str, part: str, fault: str) -> Callable[[str, str, int], str | None]:
    return lambda asked, path, count: fault if asked == method and part in path else None


HOST = {"user_id": "@h:fake", "access_token": "h", "password": "right"}
GUEST = {"user_id": "@g:fake", "access_token": "g", "password": "right"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "CHECK_SECONDS", 1)


def meet(home: FakeHomeserver, **more: Any) -> list[Check]:
    options: dict[str, Any] = {"guest": GUEST, "password_user": ("anna", "right"), **more}
    return hold(home.url, **options)


def bad(checks: list[Check]) -> dict[str, str]:
    return {check.check: check.detail for check in checks if not check.ok}


def test_two_users_meet() -> None:
    with FakeHomeserver() as home:
        with Client(home.url, "old", "@old:fake") as client:
            client.send_text("!room:fake", "of old times")
        checks = meet(home, old_before=0.5)
        assert bad(checks) == {}
        assert [check.check for check in checks] == EVERYTHING
        assert home.gone == {"@g:fake"}
        assert not any("register" in path for _, path in home.log)


def test_without_a_password_account_both_are_thrown_away() -> None:
    with FakeHomeserver() as home:
        checks = meet(home, password_user=None, host=HOST)
        assert bad(checks) == {}
        assert checks[0].check == "first user"
        assert home.gone == {"@h:fake", "@g:fake"}


def test_the_password_account_looks_for_something_old() -> None:
    with FakeHomeserver(page=1) as home:
        with Client(home.url, "old", "@old:fake") as client:
            client.send_text("!room:fake", "of old times")
            client.send_text("!room:fake", "of now")
        found = {check.check: check.detail for check in meet(home, old_before=0.5)}
        assert found["old data"].startswith("$e0 of @old:fake, 1970-01-01 00:00 UTC")
        assert found["old data"].endswith("read back")
        found = {check.check: check.detail for check in meet(home, old_before=-1.0)}
        assert found["old data"].startswith("nothing compared: @anna:fake is in 1 rooms")


def test_a_meeting_at_an_address_keeps_the_name() -> None:
    with FakeHomeserver() as home:
        port = home.url.rpartition(":")[2]
        named = f"http://chat.example.invalid:{port}"
        checks = hold(named, guest=GUEST, host=HOST, connect_to="127.0.0.1")
        assert bad(checks) == {}


def test_a_wrong_password_leaves_the_other_checks_explained() -> None:
    with FakeHomeserver() as home:
        failed = bad(meet(home, password_user=("anna", "wrong")))
    assert "M_FORBIDDEN: Invalid password" in failed["password login"]
    assert failed["room"] == "not tried, because it needs: password login"
    assert "second user" not in failed


@pytest.mark.parametrize(
    ("method", "part", "fault", "check", "text"),
    [
        ("PUT", "/send/", "lose", "message by sync", "/sync of the guest did not show"),
        ("POST", "/upload", "spoil", "media down", "bytes came back, not the"),
        ("GET", "/thumbnail", "502", "thumbnail", "HTTP 502"),
        ("PUT", "/sendToDevice", "502", "to-device", "HTTP 502"),
        ("POST", "/search", "502", "search", "HTTP 502"),
        ("POST", "/deactivate", "502", "goodbye", "HTTP 502"),
    ],
)
def test_each_check_can_fail(method: str, part: str, fault: str, check: str, text: str) -> None:
    with FakeHomeserver(at(method, part, fault)) as home:
        failed = bad(meet(home))
    assert text in failed[check]


def test_a_server_that_is_not_there_fails_every_check_and_raises_nothing() -> None:
    checks = hold("http://127.0.0.1:1", guest={}, password_user=("anna", "right"))
    assert [check.check for check in checks if check.ok] == ["goodbye"]
    assert "refused" in checks[0].detail


def test_the_picture_is_a_png() -> None:
    picture = png(5, 4)
    assert picture.startswith(PNG_MAGIC)
    length = int.from_bytes(picture[33:37], "big")
    assert picture[37:41] == b"IDAT"
    assert len(zlib.decompress(picture[41 : 41 + length])) == 4 * (1 + 5 * 3)
