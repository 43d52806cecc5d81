"""What answers in the place of a Redis, and how long it is listened to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from saltworks import pki

from tests.unit.modules.minion_modules import load

#: What a peer does with a connection of TLS.
Peer = Callable[[ssl.SSLSocket], None]

GARBLED = [
    b"\r\n", b"\xff\xfe\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"$2\r\nabcd\r\n",
    b"*1\r\n" * 5000, b"*2\r\n+a\r\n?\r\n", b":one\r\n", b"$1\r\n\xff\r\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of formula sentinel, of one Redis and one sentinel by the name of one."""
    made = tmp_path_factory.mktemp("sentinel")
    now = datetime.now(UTC)
    authority, authority_key = pki.make_authority("tests", now)
    crt, key = pki.issue(authority, authority_key, ["one"], now)
    for kind, text in (("authority", authority), ("crt", crt), ("key", key)):
        (made / f"tls.{kind}").write_text(text)
    (made / "sentinel.conf").write_text(
        'sentinel sentinel-user a\nsentinel sentinel-pass "b"\n'
        'sentinel auth-user s a\nsentinel auth-pass s "b"\n'
    )
    return made


@contextlib.contextmanager
def peer(folder: Path, does: Peer) -> Iterator[int]:
    """One that has the certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    def served(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as one:
            does(one)

    def serves(listens: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=served, args=(listens.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listens:
        threading.Thread(target=serves, args=(listens,), daemon=True).start()
        yield listens.getsockname()[1]
        listens.shutdown(socket.SHUT_RDWR)


def says(*answers: bytes) -> Peer:
    """Answers one command after the other, and waits for the next."""

    def does(one: ssl.SSLSocket) -> None:
        for answer in answers:
            one.recv(1 << 16)
            one.sendall(answer)
        one.recv(1 << 16)

    return does


def status(folder: Path, port: int) -> dict[str, Any]:
    """``redis_set.status``, where one is the only Redis and the only sentinel."""
    at = {"one": "127.0.0.1"}
    (folder / "members.json").write_text(json.dumps(
        {"set": "s", "servers": at, "server_port": port, "sentinels": at, "port": port}
    ))
    salt = {f"{virtual}.{key}": value
            for virtual, name in (("redis_bus", "redis_bus"),
                                  ("redis_rules", "saltworks_redis_rules"))
            for key, value in vars(load("_modules", name)).items()}
    module: Any = load("_modules", "saltworks_redis_set", salt)
    module.CONFIG_DIR = str(folder)
    shown: dict[str, Any] = module.status()
    return shown


def ping(folder: Path, port: int) -> Any:
    module: Any = load("_modules", "redis_bus")
    return module.ping("one", "127.0.0.1", port, "a", "b", str(folder / "tls.authority"), 0.5)


@pytest.mark.parametrize("answer", GARBLED, ids=lambda answer: repr(answer[:12]))
def test_what_is_not_redis_s_protocol_is_no_answer(folder: Path, answer: bytes) -> None:
    with peer(folder, says(b"+OK\r\n", answer)) as port:
        said = [row["what"] for row in status(folder, port)["wrong"]]
        assert any(row.startswith("the sentinel of one does not answer (") for row in said), said
        assert any(row.startswith("Redis of one does not answer (") for row in said), said
        with pytest.raises(CommandExecutionError, match="did not answer as one within"):
            ping(folder, port)


@pytest.mark.parametrize("answer", [
    b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n:1\r\n", b"$13\r\nslave0:ip=a,x\r\n",
    b"$22\r\nmaster_repl_offset:high\r\n",
])  # fmt: skip
def test_nor_is_the_answer_to_something_else(folder: Path, answer: bytes) -> None:
    with peer(folder, says(b"+OK\r\n", answer)) as port:
        shown = status(folder, port)
    assert shown["master"] == ""
    assert not shown["sentinels"]["one"]["up"]


def test_what_they_say_is_read(folder: Path) -> None:
    def does(one: ssl.SSLSocket) -> None:
        one.recv(1 << 16)
        one.sendall(b"+OK\r\n")
        text = b"role:master\r\nmaster_repl_offset:7\r\n"
        answer = b"*2\r\n$9\r\n127.0.0.1\r\n+1\r\n"
        if b"INFO" in one.recv(1 << 16):
            answer = b"$%d\r\n%s\r\n" % (len(text), text)
        # In pieces, as a network has it.
        for byte in answer:
            one.sendall(bytes([byte]))

    with peer(folder, does) as port:
        shown = status(folder, port)
        assert (shown["master"], shown["wrong"]) == ("one", [])
    with peer(folder, says(b"+OK\r\n", b"+PONG\r\n")) as port:
        assert ping(folder, port)["seconds"] < 5
    with peer(folder, says(b"-WRONGPASS no\r\n")) as port:
        assert "(WRONGPASS no)" in str(status(folder, port)["wrong"])


def test_one_that_goes_on_talking_is_not_listened_to_for_ever(folder: Path) -> None:
    def does(one: ssl.SSLSocket) -> None:
        while True:
            one.sendall(b"x")
            time.sleep(0.05)

    with peer(folder, does) as port:
        begun = time.monotonic()
        assert "timed out" in str(status(folder, port)["wrong"])
        assert time.monotonic() - begun < 10
