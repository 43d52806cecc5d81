"""Redis and its sentinels, asked by TLS: certificates are verified by name, answers bounded."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_bus"

#: For all answers of one connection.
ANSWER_SECONDS = 2.0
LOOK_SECONDS = 0.1


def __virtual__() -> str:
    return __virtualname__


def ping(
    name: str, address: str, port: int, user: str, password: str, authority: str,
    timeout: float = 15,
) -> dict[str, Any]:
    """Wait until Redis lets an account in and answers PING.

    :param name: in its certificate, which is verified.
    :param address: where it is.
    :param authority: file of the authority behind the certificate.
    :param timeout: bound in seconds.
    :returns: ``seconds`` waited.
    :raises CommandExecutionError: after the bound, with the last answer.
    """
    at = (name, address, port, authority)
    return _waited(at, [["AUTH", user, password], ["PING"]], "PONG", timeout)


def reached(
    name: str, address: str, port: int, authority: str, timeout: float = 15
) -> dict[str, Any]:
    """Wait until Redis answers here, by TLS, somebody who does not say who he is.

    That this machine gets there, and that the certificate is Redis's, needs no password, and what
    the master asks of machines stands in its job cache.

    :param name: in its certificate, which is verified.
    :param address: where it is.
    :param authority: file of the authority behind the certificate.
    :param timeout: bound in seconds.
    :returns: ``seconds`` waited.
    :raises CommandExecutionError: after the bound, with the last answer.
    """
    refusal = "NOAUTH Authentication required."
    return _waited((name, address, port, authority), [["PING"]], refusal, timeout)


def answers(authority: str, asks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each of some says; all are asked at once.

    :param authority: file of the authority behind their certificates.
    :param asks: any key → ``name`` (in the certificate), ``address``, ``port``, ``user``,
        ``password``, and ``words``, the command.
    :returns: key → ``answer``; or ``error``: it refuses, or does not answer in time, or not as
        Redis does.
    """
    def asked(ask: Mapping[str, Any]) -> dict[str, Any]:
        at = (ask["name"], ask["address"], ask["port"], authority)
        try:
            return {"answer": _asked(at, ["AUTH", ask["user"], ask["password"]], ask["words"])}
        except OSError as error:
            return {"error": str(error) or type(error).__name__}

    with ThreadPoolExecutor(max(1, len(asks))) as pool:
        return dict(zip(asks, pool.map(asked, asks.values()), strict=True))


def _waited(
    at: tuple[str, str, int, str], commands: list[list[str]], wanted: str, timeout: float
) -> dict[str, Any]:
    name, address, port, _ = at
    begun = time.monotonic()
    last = "nothing tried"
    while time.monotonic() - begun < timeout:
        try:
            last = str(_asked(at, *commands))
        except OSError as error:
            last = str(error)
        if last == wanted:
            return {"seconds": round(time.monotonic() - begun, 3)}
        time.sleep(LOOK_SECONDS)
    raise CommandExecutionError(
        f"Redis at {address}:{port} did not answer as {name} within {timeout:g} s (last: {last}); "
        "see journalctl -u redis-server there, and the firewall between"
    )


def _asked(at: tuple[str, str, int, str], *commands: list[str]) -> Any:
    """The answer to the last of some commands.

    :param at: name in the certificate, address, port, file of the authority.
    :raises OSError: it refuses one, or does not answer in time, or not as Redis does.
    """
    name, address, port, authority = at
    end = time.monotonic() + ANSWER_SECONDS
    context = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection((address, port), timeout=ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        said = _Said(secure, end)
        for command in commands:
            words = [word.encode() for word in command]
            parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
            secure.sendall(b"*%d\r\n%s" % (len(words), b"".join(parts)))
            try:
                answer = said.value()
            except (ValueError, IndexError, RecursionError):
                raise ConnectionError("what it says is not Redis's protocol") from None
    return answer


class _Said:
    """What comes over a connection until a moment, as values of Redis's protocol.

    https://redis.io/docs/latest/develop/reference/protocol-spec/
    """

    def __init__(self, connection: ssl.SSLSocket, end: float) -> None:
        self._connection, self._end, self._had = connection, end, b""

    def value(self) -> Any:
        """The next one.

        :raises OSError: it is an error, or does not come.
        :raises ValueError: it is none; or IndexError, RecursionError.
        """
        while b"\r\n" not in self._had:
            self._more()
        line, _, self._had = self._had.partition(b"\r\n")
        text = line.decode()
        kind, rest = text[0], text[1:]
        if kind == "-":
            raise ConnectionError(rest)
        if kind == "+":
            return rest
        # Any other is a number, or begins with one.
        number = int(rest)
        if kind == ":":
            return number
        if kind not in "$*":
            raise ValueError(kind)
        if number < 0:
            return None
        return self._text(number) if kind == "$" else [self.value() for _ in range(number)]

    def _text(self, length: int) -> str:
        while len(self._had) < length + 2:
            self._more()
        raw, ended = self._had[:length], self._had[length:length + 2]
        self._had = self._had[length + 2:]
        if ended != b"\r\n":
            raise ValueError(ended)
        return raw.decode()

    def _more(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        got = self._connection.recv(1 << 16)
        if not got:
            raise ConnectionError("it closed the connection")
        self._had += got
