"""Virtual users of a homeserver: they long-poll, write into their rooms, and say what they saw.

    python -m tests.bench.load prepare --url https://chat.lale.test --ca ca.pem --out crowd.json
    python -m tests.bench.load run --url ... --ca ... --crowd crowd.json --senders 8 --out run.json

`run` prints `begin` and `end` when what it measures begins and ends, so that others can measure the
same time. Its report is `load_figures.measured`, with `troubles` by cause and its own `cpu`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import secrets
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench.load_figures import GENERATOR, Profile, Seen, Sent, measured
from tests.lab import people
from tests.lab.client import Client, MatrixError, Trouble
from tests.lab.reach import reached

Json = dict[str, Any]

POLL_SECONDS = 30
READY_SECONDS = 120
#: Who reads marks it as read this often at most, in seconds.
RECEIPT_SECONDS = 5.0
#: How long what was sent is waited for at the end, and requests that are under way.
LATE_SECONDS = 10.0
NOTHING: Json = {"types": []}
FILTER: Json = {
    "presence": NOTHING,
    "account_data": NOTHING,
    "room": {
        "timeline": {"limit": 100},
        "state": {"lazy_load_members": True},
        "account_data": NOTHING,
        "ephemeral": NOTHING,
    },
}


def prepared(url: str, ca: str | None, admin_url: str, profile: Profile) -> Json:
    """Registers the users and makes their rooms: `users` (credentials), `rooms` (ids)."""
    run = secrets.token_hex(3)
    users = []
    with Client(admin_url) as client:
        for number in range(profile.users):
            name, password = f"load-{run}-{number}", secrets.token_hex(8)
            secret = people.REGISTRATION_SHARED_SECRET
            users.append(client.register_shared_secret(secret, name, password))
    clients = [_client(url, ca, user) for user in users]
    rooms = []
    for number, members in enumerate(profile.members()):
        # Not always by the same one: there is a limit on that.
        first, *others = [clients[user] for user in members[number % 2 :] + members[: number % 2]]
        rooms.append(first.create_room(preset="public_chat", name=f"Load {run} {number}"))
        for client in others:
            client.join(rooms[-1])
    return {"users": users, "rooms": rooms}


def _client(url: str, ca: str | None, user: Json, troubles: Any = None) -> Client:
    token, name, device = user["access_token"], user["user_id"], user.get("device_id")
    return Client(url, token, name, device, ca, timeout=60, on_trouble=troubles)


class Crowd:
    """The virtual users of a run.

    crowd: what `prepared` gave. rate: messages a second of all senders together; None: each sends
    its next as soon as the last was answered.
    """

    def __init__(
        self, url: str, ca: str | None, crowd: Json, profile: Profile, senders: int,
        rate: float | None,
    ) -> None:  # fmt: skip
        self.url, self.ca = url, ca
        self.users: list[Json] = crowd["users"]
        self.rooms: list[str] = crowd["rooms"]
        self.profile = profile
        self.senders = senders
        self.interval = senders / rate if rate else 0.0
        self.mark = f"load {secrets.token_hex(4)} "
        self.sent: dict[int, Sent] = {}
        self.seen: list[Seen] = []
        self._troubles: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._listening = threading.Barrier(len(self.users) + 1)
        self._enough, self._done = threading.Event(), threading.Event()
        self._dead: list[str] = []

    def run(self, warm: float, seconds: float) -> Json:
        """Warms up, is measured, and waits for what is late.

        Raises RuntimeError if a user's thread has died.
        """
        # A poll that is under way ends with this process.
        for user in range(len(self.users)):
            self._spawn(self._poll, user)
        try:
            self._listening.wait(READY_SECONDS)
        except threading.BrokenBarrierError:
            raise RuntimeError(f"not everybody listens: {'; '.join(self._dead)}") from None
        sending = [self._spawn(self._send, number) for number in range(self.senders)]
        time.sleep(warm)
        troubles = Counter(self._troubles)
        print("begin", flush=True)
        begin, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        end, spent = time.monotonic(), time.process_time() - cpu
        print("end", flush=True)
        self._enough.set()
        late = end + LATE_SECONDS
        for thread in sending:
            thread.join(max(0.0, late - time.monotonic()))
        report = self._measured(begin, end)
        while report["missing"] and time.monotonic() < late:
            time.sleep(0.2)
            report = self._measured(begin, end)
        self._done.set()
        if self._dead:
            raise RuntimeError("; ".join(self._dead))
        causes = dict(self._troubles - troubles)
        return {**report, "troubles": causes, "cpu": {GENERATOR: spent}}

    def _measured(self, begin: float, end: float) -> Json:
        members = self.profile.members()
        return measured(dict(self.sent), list(self.seen), members, (begin, end))

    def _spawn(self, work: Any, number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                work(number)
            except Exception as error:
                # Fewer users would be a smaller load.
                self._dead.append(f"{work.__name__} {number}: {type(error).__name__}: {error}")
                self._listening.abort()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def _trouble(self, trouble: Trouble) -> None:
        self._troubles[trouble.cause] += 1

    def _send(self, number: int) -> None:
        chance = random.Random(number)
        mine = [*range(number, len(self.users), self.senders)]
        clients = {
            user: _client(self.url, self.ca, self.users[user], self._trouble) for user in mine
        }
        due = time.monotonic() + self.interval * number / self.senders
        while not self._enough.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.interval, time.monotonic())
            user = chance.choice(mine)
            room, message = self.profile.room_for(user, chance), next(self._numbers)
            begun = time.monotonic()
            with contextlib.suppress(MatrixError):
                clients[user].send_text(self.rooms[room], f"{self.mark}{message}")
                self.sent[message] = Sent(user, room, begun, time.monotonic())

    def _poll(self, number: int) -> None:
        client = _client(self.url, self.ca, self.users[number], self._trouble)
        since = client.sync(filter=FILTER)["next_batch"]
        self._listening.wait(READY_SECONDS)
        read_at = time.monotonic() + RECEIPT_SECONDS * number / len(self.users)
        while not self._done.is_set():
            try:
                answer = client.sync(since, POLL_SECONDS * 1000, FILTER, retry=False)
            except MatrixError:
                self._done.wait(0.2)
                continue
            at, since = time.monotonic(), answer["next_batch"]
            newest = self._take(number, at, answer)
            if newest and at > read_at and not self._enough.is_set():
                read_at = at + RECEIPT_SECONDS
                with contextlib.suppress(MatrixError):
                    client.receipt(*newest)

    def _take(self, user: int, at: float, answer: Json) -> tuple[str, str] | None:
        newest = None
        for room, row in answer.get("rooms", {}).get("join", {}).items():
            for event in row.get("timeline", {}).get("events", []):
                body = str(event.get("content", {}).get("body", ""))
                if body.startswith(self.mark):
                    self.seen.append(Seen(int(body.removeprefix(self.mark)), user, at))
                    newest = room, str(event["event_id"])
        return newest


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load")
    parser.add_argument("what", choices=("prepare", "run"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca")
    parser.add_argument("--admin-url", help="where users are registered (default: --url)")
    parser.add_argument("--admin-pid", type=int, help="a process of the machine that reaches it")
    parser.add_argument("--crowd", type=Path, help="what `prepare` wrote")
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--rate", type=float, help="messages a second; without it as many as go")
    parser.add_argument("--warm", type=float, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    profile = Profile()
    try:
        if given.what == "prepare":
            with reached(given.admin_url or given.url, given.admin_pid) as admin_url:
                report = prepared(given.url, given.ca, admin_url, profile)
        else:
            crowd = json.loads(given.crowd.read_text())
            users = Crowd(given.url, given.ca, crowd, profile, given.senders, given.rate)
            report = users.run(given.warm, given.seconds)
    except (MatrixError, OSError, RuntimeError) as error:
        print(f"{given.what} failed at {given.url}: {error}", file=sys.stderr)
        return 3
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
