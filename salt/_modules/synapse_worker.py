"""Synapse's worker processes, asked on their machine or from the front.

Every wait is bounded; an error says what was waited for.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from salt.exceptions import CommandExecutionError

__opts__: dict[str, Any]
__salt__: dict[str, Any]

#: One answer of a healthy process, in seconds.
ANSWER_SECONDS = 3.0

#: For which requests in flight are waited before a service is stopped.
STOP_SECONDS = 10.0

#: Between two looks, in seconds.
LOOK_SECONDS = 0.25

#: Looks at the same time.
AT_ONCE = 32

PROC = "/proc"

#: The lines of Prometheus' text format that are of interest: name, labels, value.
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

POSITION = "synapse_storage_stream_current_position"
CONNECTIONS = "synapse_replication_tcp_resource_total_connections"
QUEUE = "synapse_replication_tcp_command_queue"
COMMANDS = "synapse_replication_tcp_protocol_inbound_commands_total"

ESTABLISHED = "01"


def answering(urls: list[str], timeout: float = ANSWER_SECONDS, tries: int = 3) -> dict[str, bool]:
    """Whether processes answer ``/health``, by their base URL.

    :param timeout: of each look, in seconds.
    :param tries: looks at one that does not, before that is the answer.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda url: _answers(url, timeout, tries), urls)
        return dict(zip(urls, answers, strict=True))


def healthy(urls: list[str], times: int = 3, interval: float = 0.5, timeout: float = 60) -> float:
    """Wait until every process has answered so many times in a row.

    :param urls: base URLs.
    :param interval: between two looks, in seconds.
    :param timeout: bound in seconds.
    :returns: seconds it took.
    :raises CommandExecutionError: one did not; which.
    """
    begun, row = time.monotonic(), 0
    while True:
        silent = [url for url, well in answering(urls, tries=1).items() if not well]
        row = 0 if silent else row + 1
        if row >= times:
            return round(time.monotonic() - begun, 3)
        if time.monotonic() - begun > timeout:
            raise CommandExecutionError(
                f"{', '.join(silent) or 'a process'} did not answer /health {times} times in a row "
                f"within {timeout:g} s; see journalctl -u 'synapse-worker@*' on this machine"
            )
        time.sleep(interval)


def positions(url: str, timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
    """How far a process has heard of the streams, by its own word.

    :param url: its base URL; its listener has the resource ``metrics``.
    :returns: ``subscribed``: it is connected to Redis and was told the writers' positions;
        ``queued``: commands that wait; ``streams``: stream to position.
    :raises CommandExecutionError: it gives no metrics.
    """
    text = _get(f"{url}/_synapse/metrics", timeout)
    found: dict[str, Any] = {"subscribed": False, "queued": 0, "streams": {}}
    connections = told = 0.0
    for name, labels, value in _SAMPLE.findall(text):
        words = dict(_LABEL.findall(labels))
        if name == POSITION:
            found["streams"][words["stream_name"]] = int(float(value))
        elif name == QUEUE:
            found["queued"] += int(float(value))
        elif name == CONNECTIONS:
            connections += float(value)
        elif name == COMMANDS and words.get("command") == "POSITION":
            told += float(value)
    found["subscribed"] = connections > 0 and told > 0
    return found


def caught_up(urls: list[str], main_url: str, timeout: float = 60) -> dict[str, Any]:
    """Wait until processes are as far in every stream as the main process was at the beginning.

    :param urls: their base URLs.
    :param main_url: of the main process.
    :param timeout: bound in seconds.
    :returns: ``seconds`` it took, and how many ``streams`` were compared.
    :raises CommandExecutionError: one is behind, or hears of nothing; where and how far.
    """
    begun = time.monotonic()
    target = positions(main_url)["streams"]
    if not target:
        raise CommandExecutionError(f"{main_url} says of no stream how far it is; is it a Synapse?")
    while True:
        behind = {
            url: why for url in urls if (why := _behind(positions(url), target)) is not None
        }
        if not behind:
            seconds = round(time.monotonic() - begun, 3)
            return {"seconds": seconds, "streams": len(target)}
        if time.monotonic() - begun > timeout:
            words = "; ".join(f"{url} {why}" for url, why in sorted(behind.items()))
            raise CommandExecutionError(
                f"{words}, {timeout:g} s after it was to catch up; see its log, and Redis"
            )
        time.sleep(LOOK_SECONDS)


def connections(ports: list[int]) -> int:
    """Established TCP connections to ports of this machine."""
    wanted = {f"{port:04X}" for port in ports}
    count = 0
    for name in ("tcp", "tcp6"):
        with open(f"{PROC}/net/{name}", encoding="ascii") as handle:
            for line in handle.readlines()[1:]:
                words = line.split()
                if words[1].rpartition(":")[2] in wanted and words[3] == ESTABLISHED:
                    count += 1
    return count


def emptied(ports: list[int], timeout: float) -> dict[str, Any]:
    """Wait until nobody is connected to ports any more: long polls have ended.

    :param timeout: bound in seconds; it is no failure if some are left then, the caller says
        what that means.
    :returns: ``seconds`` it took, ``left``: connections that are still there.
    """
    begun = time.monotonic()
    while (left := connections(ports)) and time.monotonic() - begun < timeout:
        time.sleep(LOOK_SECONDS)
    return {"seconds": round(time.monotonic() - begun, 3), "left": left}


def stop(services: list[str]) -> list[str]:
    """Stop services; they do not run when this returns.

    :param services: units without suffix.
    :raises CommandExecutionError: one runs still; which.
    """
    for service in services:
        __salt__["service.stop"](service)
    if runs := [service for service in services if __salt__["service.status"](service)]:
        raise CommandExecutionError(f"{', '.join(runs)} did not stop; see systemctl status there")
    return services


def start(services: list[str]) -> list[str]:
    """Start services; they run when this returns.

    :param services: units without suffix.
    :raises CommandExecutionError: one does not run; which.
    """
    for service in services:
        __salt__["service.start"](service)
    if dead := [service for service in services if not __salt__["service.status"](service)]:
        raise CommandExecutionError(f"{', '.join(dead)} did not start; see journalctl -u there")
    return services


def emptied_here(rows: dict[str, list[int]]) -> dict[str, Any]:
    """:func:`emptied` of this machine's ports, before services are stopped.

    :param rows: minion id to ports: one call asks many machines at once.
    """
    return emptied(rows[__opts__["id"]], STOP_SECONDS)


def stop_here(rows: dict[str, list[str]]) -> list[str]:
    """:func:`stop` this machine's services.

    :param rows: minion id to services.
    """
    return stop(rows[__opts__["id"]])


def start_here(rows: dict[str, list[str]]) -> list[str]:
    """:func:`start` this machine's services.

    :param rows: minion id to services.
    """
    return start(rows[__opts__["id"]])


def served(
    requests: list[dict[str, str]],
    targets: list[str],
    log: str,
    front: str,
    port: int,
    name: str,
    timeout: float = 30,
) -> dict[str, Any]:
    """Wait until the front's log shows that each process has answered a request; on the front.

    Requests are made meanwhile, so that there is one for each, too, when nobody is awake.

    :param requests: what to ask: ``method``, ``path`` and ``authorization``, with ``{n}`` where it
        may vary.
    :param targets: names of the processes, with which the log's lines end.
    :param log: nginx's access log.
    :param front: address that nginx listens on.
    :param port: with TLS.
    :param name: the public name.
    :param timeout: bound in seconds.
    :returns: target to the line's ``request`` and ``status``.
    :raises CommandExecutionError: one was not seen; which.
    """
    begun, seen, number = time.monotonic(), dict[str, Any](), 0
    with open(log, encoding="utf-8", errors="replace") as lines:
        lines.seek(0, os.SEEK_END)
        while True:
            for request in requests:
                number += 1
                _ask(request, number, front, port, name)
            for line in lines:
                for target in set(targets) - set(seen):
                    if answer := _answered(line, target):
                        seen[target] = answer
            if set(seen) >= set(targets):
                return seen
            if time.monotonic() - begun > timeout:
                missing = ", ".join(sorted(set(targets) - set(seen)))
                raise CommandExecutionError(
                    f"{missing} answered none of {number} requests through {name} within "
                    f"{timeout:g} s; see {log} and nginx -T on this machine"
                )
            time.sleep(LOOK_SECONDS)


def _answered(line: str, target: str) -> dict[str, str] | None:
    """What a line of the log says, if a target gave the answer; None if not."""
    found = re.search(r'"([A-Z]+ [^"]*)" (\d{3}) ', line)
    if not found or not line.rstrip().endswith(f" {target}") or found[2].startswith("5"):
        return None
    return {"request": found[1], "status": found[2]}


def _ask(request: dict[str, str], number: int, front: str, port: int, name: str) -> None:
    # Nothing that is asked is believed, and nothing that is sent is secret: who answers is in
    # the log. So the certificate is not looked at.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((front, port), ANSWER_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            path = request["path"].replace("{n}", str(number))
            authorization = request["authorization"].replace("{n}", str(number))
            tls.sendall(
                f"{request['method']} {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n"
                f"Authorization: {authorization}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            http.client.HTTPResponse(tls).begin()
    except (OSError, http.client.HTTPException):
        return


def _behind(found: dict[str, Any], target: dict[str, int]) -> str | None:
    if not found["subscribed"]:
        return "hears of nothing"
    if found["queued"]:
        return f"has {found['queued']} commands to take up"
    for name, position in sorted(target.items()):
        if found["streams"].get(name, position) < position:
            return f"is at {found['streams'][name]} of {position} in {name}"
    return None


def _answers(url: str, timeout: float, tries: int) -> bool:
    for _ in range(tries):
        try:
            _get(f"{url}/health", timeout)
        except CommandExecutionError:
            time.sleep(LOOK_SECONDS)
        else:
            return True
    return False


def _get(url: str, timeout: float) -> str:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
        raise CommandExecutionError(f"{url} does not answer: {error}") from error
