"""What the witness writes down while it chats, and what it says of it afterwards.

No network here: threads call the `Ledger`, and `Ledger.report` judges. The words:

- acknowledged: the server answered the PUT with an event id;
- lost: acknowledged, but not in the room's history, or not shown to one of the members by /sync;
- duplicated: one numbered body under two event ids, in the history or by /sync;
  of to-device messages: one handed out twice. Synapse keeps their transaction ids in memory only,
  so one that is repeated across a restart may really come twice;
- failed request: an answer of 5xx or an unexpected 4xx or 3xx, or a connection error. Each attempt
  counts. Two things are counted apart: a kept connection closed while idle (`stale_connections`,
  ordinary in HTTP) and a 429 (`rate_limited`, an ordinary answer of a Matrix server, obeyed). The
  verdict allows none of either: each costs a user time, and a POST is not repeated;
- silence: a second and more between two acknowledged messages; its ends are Unix times;
- wait: from the first attempt of a request to its answer. For a long poll, how much later than
  asked for its answer came; after a cut long poll, from the cut to the next answer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from saltworks.matrix_http import STALE, Trouble

Json = dict[str, Any]

KEPT_FAILURES = 50
KEPT_WAITS = 5
KEPT_EXAMPLES = 20
SILENCE_SECONDS = 1.0


@dataclass(frozen=True)
class Wait:
    """One request and how long it was waited for. `at` is Unix time of the first attempt."""

    seconds: float
    at: float
    method: str
    path: str


@dataclass(frozen=True)
class Media:
    """An uploaded file."""

    mxc: str
    sha256: str


def utc(at: float) -> str:
    """Unix time as ISO 8601 in UTC, with milliseconds."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{whole}.{int(at % 1 * 1000):03d}Z"


def shortened(path: str) -> str:
    """A path for a report: without transaction ids and other long tails."""
    return path if len(path) <= 120 else path[:117] + "..."


class Ledger:
    """Everything seen in one run. All methods may be called from any thread.

    members: the users whose /sync must show every message.
    """

    def __init__(self, members: list[str]) -> None:
        self.members = members
        self.started = time.time()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        self._retried: Counter[str] = Counter()
        self._failed: list[Trouble] = []
        self._waits: list[Wait] = []
        self._polls: Counter[str] = Counter()
        self._ids: dict[str, set[str]] = defaultdict(set)
        self._acked: dict[str, tuple[str, float]] = {}
        self._unacked: list[str] = []
        self._seen: dict[str, set[str]] = {member: set() for member in members}
        self._seen_again = 0
        self._slowest_delivery = 0.0
        self._history: set[str] | None = None
        self._device_acked: dict[str, str] = {}
        self._device_seen: Counter[tuple[str, str]] = Counter()
        self.media: list[Media] = []
        self._media_intact: set[str] = set()
        self._problems: list[str] = []

    # --- requests ---------------------------------------------------------------------------

    def trouble(self, trouble: Trouble) -> None:
        """One attempt that went wrong; the clients' hook."""
        with self._lock:
            self._causes[trouble.cause] += 1
            if trouble.retried:
                self._retried[trouble.cause] += 1
            if trouble.cause != STALE and trouble.status != 429:
                self._failed.append(trouble)

    def answered(self, kind: str, method: str, path: str, at: float, seconds: float) -> None:
        """A request that came to its end, well or not, after all its attempts."""
        with self._lock:
            self._requests[kind] += 1
            self._wait(Wait(seconds, at, method, path))

    def polled(
        self, asked: float, at: float, seconds: float, path: str, *, cut: bool = False
    ) -> None:
        """A long poll that came to its end; `asked` seconds were its timeout."""
        with self._lock:
            self._requests["sync"] += 1
            self._polls["total"] += 1
            self._polls["cut"] += cut
            self._polls["timed_out"] += not cut and asked > 0 and seconds >= asked
            self._wait(Wait(max(0.0, seconds - asked), at, "GET", path))

    def reconnected(self, at: float, seconds: float, path: str) -> None:
        """The first answer to a poller since its poll was cut `seconds` before."""
        with self._lock:
            self._wait(Wait(seconds, at, "GET", path + " (after a cut long poll)"))

    def _wait(self, wait: Wait) -> None:
        self._waits.append(wait)
        if len(self._waits) > 50 * KEPT_WAITS:
            self._waits = _worst(self._waits)

    def problem(self, text: str) -> None:
        """Something that makes the report itself less than complete."""
        with self._lock:
            self._problems.append(text)

    # --- messages ---------------------------------------------------------------------------

    def acknowledged(self, body: str, event: str) -> None:
        """The server answered a message with its event id."""
        with self._lock:
            self._acked[event] = (body, time.time())
            self._ids[body].add(event)

    def unacknowledged(self, body: str) -> None:
        """The sender gave a message up: it may be there or not, both are right."""
        with self._lock:
            self._unacked.append(body)

    def shown(self, member: str, body: str, event: str) -> bool:
        """A member's /sync showed a message; False if it had shown the same event before."""
        with self._lock:
            self._ids[body].add(event)
            if event in self._seen[member]:
                self._seen_again += 1
                return False
            self._seen[member].add(event)
            if event in self._acked:
                took = time.time() - self._acked[event][1]
                self._slowest_delivery = max(self._slowest_delivery, took)
            return True

    def knows(self, member: str, event: str) -> bool:
        """Whether a member's /sync has shown an event."""
        with self._lock:
            return event in self._seen[member]

    def read(self, body: str, event: str) -> None:
        """A message found in the room's history, read back at the end."""
        with self._lock:
            if self._history is None:
                self._history = set()
            self._history.add(event)
            self._ids[body].add(event)

    # --- to-device and media ----------------------------------------------------------------

    def device_acknowledged(self, number: str, to: str) -> None:
        """A to-device message was answered with 200."""
        with self._lock:
            self._device_acked[number] = to

    def device_shown(self, member: str, number: str) -> None:
        """A member's /sync handed out a to-device message."""
        with self._lock:
            self._device_seen[member, number] += 1

    def uploaded(self, media: Media) -> None:
        """A file was uploaded."""
        with self._lock:
            self.media.append(media)

    def intact(self, media: Media) -> None:
        """A file was read back at the end and is what was uploaded."""
        with self._lock:
            self._media_intact.add(media.mxc)

    # --- judging ----------------------------------------------------------------------------

    def outstanding(self) -> int:
        """How many acknowledged messages some member, or some device, has still to be shown."""
        with self._lock:
            shown_to_all = set.intersection(*self._seen.values()) if self._seen else set()
            messages = sum(event not in shown_to_all for event in self._acked)
            return messages + sum(
                self._device_seen[to, number] == 0 for number, to in self._device_acked.items()
            )

    def report(self) -> Json:
        """The report, ready for JSON. Times are seconds; moments are ISO 8601 in UTC."""
        with self._lock:
            history = self._history or set()
            lost = {}
            for event, (body, _) in self._acked.items():
                missing = [member for member in self.members if event not in self._seen[member]]
                if event not in history or missing:
                    lost[event] = (body, event in history, missing)
            duplicated = {body: sorted(ids) for body, ids in self._ids.items() if len(ids) > 1}
            device_lost = [
                number
                for number, to in self._device_acked.items()
                if not self._device_seen[to, number]
            ]
            waits = _worst(self._waits)
            return {
                "acknowledged": len(self._acked),
                "delivered": len(self._acked) - len(lost),
                "lost": len(lost),
                "duplicated": sum(len(ids) - 1 for ids in duplicated.values()),
                "failed_requests": len(self._failed),
                "worst_wait_seconds": round(waits[0].seconds, 3) if waits else 0.0,
                "started": utc(self.started),
                "finished": utc(time.time()),
                "unacknowledged": len(self._unacked),
                "worst_delivery_seconds": round(self._slowest_delivery, 3),
                "silences": _silences([at for _, at in self._acked.values()]),
                "shown_again": self._seen_again,
                "to_device": {
                    "acknowledged": len(self._device_acked),
                    "delivered": len(self._device_acked) - len(device_lost),
                    "lost": len(device_lost),
                    "lost_messages": device_lost,
                    "duplicated": sum(count - 1 for count in self._device_seen.values() if count),
                },
                "media": {"uploaded": len(self.media), "intact": len(self._media_intact)},
                "requests": {
                    "total": sum(self._requests.values()),
                    **dict(sorted(self._requests.items())),
                },
                "long_polls": {key: self._polls[key] for key in ("total", "timed_out", "cut")},
                "retries": dict(sorted(self._retried.items())),
                "troubles": dict(sorted(self._causes.items())),
                "stale_connections": self._causes[STALE],
                "rate_limited": self._causes["http_429"],
                "failures": [_failure(trouble) for trouble in self._failed[:KEPT_FAILURES]],
                "worst_waits": [
                    {
                        "at": utc(wait.at),
                        "seconds": round(wait.seconds, 3),
                        "method": wait.method,
                        "path": shortened(wait.path),
                    }
                    for wait in waits
                ],
                "lost_messages": [
                    {"event": event, "body": body, "in_history": there, "not_shown_to": missing}
                    for event, (body, there, missing) in list(lost.items())[:KEPT_EXAMPLES]
                ],
                "duplicated_messages": dict(list(duplicated.items())[:KEPT_EXAMPLES]),
                "problems": list(self._problems),
            }


def _silences(acknowledged: list[float]) -> list[Json]:
    """Times of a second and more in which no message was acknowledged between two that were."""
    return [
        {"since": before, "until": after, "seconds": round(after - before, 3)}
        for before, after in itertools.pairwise(sorted(acknowledged))
        if after - before >= SILENCE_SECONDS
    ]


def _worst(waits: list[Wait]) -> list[Wait]:
    return sorted(waits, key=lambda wait: -wait.seconds)[:KEPT_WAITS]


def _failure(trouble: Trouble) -> Json:
    return {
        "at": utc(trouble.started),
        "seconds": round(trouble.seconds, 3),
        "method": trouble.method,
        "path": shortened(trouble.path),
        "status": trouble.status,
        "cause": trouble.cause,
        "detail": trouble.detail[:200],
        "attempt": trouble.attempt,
        "retried": trouble.retried,
    }
