"""Redis as Synapse uses it: asked by TLS with Synapse's account."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_bus"

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
    return _waited(at, [["AUTH", user, password], ["PING"]], ["+OK", "+PONG"], timeout)


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
    refusal = ["-NOAUTH Authentication required."]
    return _waited((name, address, port, authority), [["PING"]], refusal, timeout)


def _waited(
    at: tuple[str, str, int, str], commands: list[list[str]], wanted: list[str], timeout: float
) -> dict[str, Any]:
    name, address, port, authority = at
    begun = time.monotonic()
    last = "nothing tried"
    while time.monotonic() - begun < timeout:
        try:
            said = _asked(name, address, port, authority, *commands)
            if said == wanted:
                return {"seconds": round(time.monotonic() - begun, 3)}
            last = " ".join(said)
        except OSError as error:
            last = str(error)
        time.sleep(LOOK_SECONDS)
    raise CommandExecutionError(
        f"Redis at {address}:{port} did not answer as {name} within {timeout:g} s (last: {last}); "
        "see journalctl -u redis-server there, and the firewall between"
    )


def _asked(name: str, address: str, port: int, authority: str, *commands: list[str]) -> list[str]:
    context = ssl.create_default_context(cafile=authority)
    answers = []
    with (
        socket.create_connection((address, port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
        secure.makefile("rwb") as stream,
    ):
        for command in commands:
            words = [word.encode() for word in command]
            stream.write(b"*%d\r\n" % len(words))
            for word in words:
                stream.write(b"$%d\r\n%s\r\n" % (len(word), word))
            stream.flush()
            answers.append(stream.readline().decode().strip())
    return answers
