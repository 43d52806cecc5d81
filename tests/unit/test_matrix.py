"""The Matrix client: what it repeats, what it reports, and how it finds media."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from saltworks import matrix_http
from saltworks.matrix import STALE, Client, MatrixError, Trouble, quoted, shared_secret_mac

from tests.unit.matrix_fake import FakeHomeserver

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def faulty(*faults: str) -> Callable[[str, str, int], str | None]:
    """Misbehaves at the first requests for the same thing, in this order."""
    return lambda method, path, count: faults[count - 1] if count <= len(faults) else None


@contextmanager
def client_of(
    home: FakeHomeserver, retry_for: float = 10
) -> Iterator[tuple[Client, list[Trouble]]]:
    troubles: list[Trouble] = []
    with Client(home.url, "u0", "@u0:fake", retry_for=retry_for, timeout=5) as client:
        client.on_trouble = troubles.append
        yield client, troubles


def test_a_put_is_repeated_with_its_transaction_id() -> None:
    with FakeHomeserver(faulty("502", "cut", "429")) as home, client_of(home) as (client, troubles):
        event = client.send_text("!room:fake", "hello")
        sends = [path for method, path in home.log if method == "PUT"]
        assert len(sends) == 4
        assert len(set(sends)) == 1
        assert [trouble.cause for trouble in troubles] == [
            "http_502",
            "stale_connection",
            "http_429",
        ]
        assert all(trouble.retried for trouble in troubles)
        assert [row["event_id"] for row in home.events] == [event]


def test_two_messages_have_two_transaction_ids() -> None:
    with FakeHomeserver() as home, client_of(home) as (client, _):
        assert client.send_text("!room:fake", "a") != client.send_text("!room:fake", "b")


def test_a_post_is_not_repeated_when_the_server_may_have_acted() -> None:
    for fault in ("502", "cut"):
        with FakeHomeserver(faulty(fault)) as home, client_of(home) as (client, troubles):
            with pytest.raises(MatrixError) as caught:
                client.create_room(name="x")
            assert len(home.log) == 1
            assert [trouble.retried for trouble in troubles] == [False]
            assert "POST /_matrix/client/r0/createRoom" in str(caught.value)


def test_a_post_is_repeated_after_a_rate_limit() -> None:
    with FakeHomeserver(faulty("429")) as home, client_of(home) as (client, troubles):
        assert client.create_room(name="x") == "!room:fake"
        assert [trouble.cause for trouble in troubles] == ["http_429"]


def test_a_post_is_repeated_when_no_connection_was_made() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        troubles: list[Trouble] = []
        client = Client(url, retry_for=0.3, on_trouble=troubles.append)
        with client, pytest.raises(MatrixError, match="refused"):
            client.create_room()
    assert len(troubles) > 1
    assert {trouble.cause for trouble in troubles} == {"refused"}


def test_repeating_is_bounded() -> None:
    with (
        FakeHomeserver(lambda method, path, count: "502") as home,
        client_of(home, retry_for=0.5) as (client, troubles),
    ):
        with pytest.raises(MatrixError, match="HTTP 502 M_X"):
            client.whoami()
        assert [trouble.retried for trouble in troubles[-2:]] == [True, False]


def test_an_expected_refusal_is_no_trouble() -> None:
    with FakeHomeserver() as home, client_of(home) as (client, troubles):
        client.deactivate("right")
        assert troubles == []
        assert home.gone == {"@u0:fake"}


@contextmanager
def raw_server(*conversations: list[bytes], hold: float = 0) -> Iterator[str]:
    """Each connection answers its list of bytes, one a request, then takes one more and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answers in conversations:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.recv(65536)
                    connection.sendall(answer)
                connection.recv(65536)
                threading.Event().wait(hold)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_a_kept_connection_closed_while_idle_is_replaced_and_told_apart() -> None:
    troubles: list[Trouble] = []
    with raw_server([GOOD], [GOOD]) as url, Client(url, on_trouble=troubles.append) as client:
        client.request("PUT", "/one")
        assert client.request("PUT", "/two") == {}
    assert [(trouble.cause, trouble.retried) for trouble in troubles] == [(STALE, True)]


def test_a_request_cut_in_flight_is_no_stale_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_http, "STALE_WITHIN", 0.05)
    troubles: list[Trouble] = []
    with (
        raw_server([GOOD], [GOOD], hold=0.2) as url,
        Client(url, on_trouble=troubles.append) as client,
    ):
        client.request("GET", "/one")
        assert client.request("GET", "/two") == {}
    assert [trouble.cause for trouble in troubles] == ["reset"]


def test_a_first_request_on_a_new_connection_is_never_stale() -> None:
    troubles: list[Trouble] = []
    with raw_server([], [GOOD]) as url, Client(url, on_trouble=troubles.append) as client:
        assert client.request("GET", "/one") == {}
    assert [trouble.cause for trouble in troubles] == ["reset"]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (GOOD.replace(b"Length: 2", b"Length: 99"), "cut_in_answer"),
        (GOOD.replace(b"{}", b"{,"), "bad_json"),
        (GOOD.replace(b"200 OK", b"302 Found"), "http_302"),
    ],
)
def test_half_answers_are_errors(answer: bytes, cause: str) -> None:
    # Closed without a further request, so that a short answer is seen as one.
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    with (
        listener,
        Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client,
        pytest.raises(MatrixError) as caught,
    ):
        client.request("GET", "/one", retry=False)
    assert caught.value.cause == cause


def test_a_name_that_does_not_exist_is_named() -> None:
    with (
        Client("http://nobody.invalid", retry_for=0) as client,
        pytest.raises(MatrixError) as caught,
    ):
        client.whoami()
    assert caught.value.cause == "dns"


@pytest.mark.parametrize("authenticated", [True, False])
@pytest.mark.parametrize("believed", [True, False, None])
def test_media_is_found_by_either_path(authenticated: bool, believed: bool | None) -> None:
    home = FakeHomeserver(authenticated_media=authenticated)
    with home, client_of(home) as (client, troubles):
        client.media_needs_token = believed
        mxc = client.upload(b"bytes", "text/plain", "naïve.txt")
        assert client.download(mxc) == b"bytes"
        assert client.media_needs_token is authenticated
        assert troubles == []


def test_history_is_read_to_its_beginning() -> None:
    with FakeHomeserver() as home, client_of(home) as (client, _):
        sent = [client.send_text("!room:fake", str(number)) for number in range(25)]
        newest = client.sync()["next_batch"]
        found = [event["event_id"] for event in client.history("!room:fake", newest, limit=10)]
    assert found == sent[::-1]


def test_paths_are_escaped() -> None:
    assert quoted("rooms", "!a/b:c d") == "/rooms/%21a%2Fb%3Ac%20d"


def test_the_proof_of_the_shared_secret() -> None:
    # printf 'n\0u\0p\0notadmin' | openssl dgst -sha1 -hmac secret
    assert (
        shared_secret_mac("secret", "n", "u", "p", False)
        == "0f2b4751fa14a68d6a6878c313b752580706c394"
    )
