"""The witness's chat: users, their threads, and how it ends. See `witness`."""

from __future__ import annotations

import contextlib
import hashlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tests.lab.client import Client, MatrixError
from tests.lab.witness_ledger import Ledger, Media

Json = dict[str, Any]

POLL_SECONDS = 30
ATTEMPT_TIMEOUT = 60
RETRY_FOR = 120
DRAIN_SECONDS = 60
# Clients draw between two polls; without this pause eight polls a second would be the lab's
# heaviest load.
POLL_PAUSE = 0.3
TO_DEVICE = "test.saltworks.witness"
BYE = "test.saltworks.bye"
GAP_PAGES = 200
MEDIA_BYTES = (2_000, 60_000)


class User:
    """One witness user: a token, a number in the run, and a client for each of its threads."""

    def __init__(self, number: int, url: str, ca: str | None, credentials: Json) -> None:
        self.number = number
        self.url = url
        self.ca = ca
        self.user_id: str = credentials["user_id"]
        self.token: str = credentials["access_token"]
        self.device_id: str | None = credentials.get("device_id")
        self.since: str | None = None

    def client(self, ledger: Ledger | None = None) -> Client:
        """A client of its own connections, whose troubles go into the ledger."""
        return Client(
            self.url,
            self.token,
            self.user_id,
            self.device_id,
            self.ca,
            ATTEMPT_TIMEOUT,
            retry_for=RETRY_FOR,
            on_trouble=ledger.trouble if ledger else None,
        )


def registered(url: str, ca: str | None, secret: str, count: int, run: str) -> list[Json]:
    """Makes `count` users by the registration shared secret. url: where the admin API is."""
    made = []
    with Client(url, ca=ca, timeout=ATTEMPT_TIMEOUT) as client:
        for number in range(count):
            made.append(
                client.register_shared_secret(
                    secret, f"witness-{run}-{number}", secrets.token_hex(8)
                )
            )
    return made


class Witness:
    """The chatting users. `start`, do the milestone, `stop` gives the report.

    users: mappings with user_id, access_token and, if known, device_id; at least one.
    rate: messages a second, of all users together. drain: seconds to wait at the end.
    """

    def __init__(
        self,
        url: str,
        users: list[Json],
        ca: str | None = None,
        *,
        rate: float = 4.0,
        drain: float = DRAIN_SECONDS,
        poll_seconds: int = POLL_SECONDS,
        errand_seconds: float = 1.0,
    ) -> None:
        if not users:
            raise ValueError("the witness needs at least one user: pass tokens or a shared secret")
        self.run = secrets.token_hex(4)
        self.url = url
        self.users = [User(number, url, ca, user) for number, user in enumerate(users)]
        self.interval = len(self.users) / rate
        self.drain = drain
        self.poll_seconds = poll_seconds
        self.errand_seconds = errand_seconds
        self.room = ""
        self.ledger = Ledger([user.user_id for user in self.users])
        self._done_sending = threading.Event()
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pollers: list[threading.Thread] = []
        self._last_event: str | None = None
        self._report: Json | None = None
        self._cpu = 0.0

    # --- beginning and end --------------------------------------------------------------------

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._report is None:
            self._done_sending.set()
            self._done.set()

    def start(self) -> None:
        """Makes the room, joins everybody and begins to chat. Raises MatrixError if it cannot."""
        self._prepare()
        self._cpu = time.process_time()
        for user in self.users:
            self._spawn(self._pollers, self._poll, user)
            self._spawn(self._threads, self._send, user)
            self._spawn(self._threads, self._errands, user)
        # Polls in the busy room end at once. Nobody writes to the users of the second half, so
        # a second poll of theirs, without any room, stays open for its whole time: it is the
        # one that a restart cuts.
        for user in self._idle_users():
            self._spawn(self._pollers, self._idle_poll, user)

    def stop(self) -> Json:
        """Ends the chat, waits until all is delivered, reads everything back and reports."""
        if self._report is not None:
            return self._report
        self._done_sending.set()
        self._join(self._threads, RETRY_FOR + ATTEMPT_TIMEOUT)
        self._drain()
        self._done.set()
        cpu = time.process_time() - self._cpu
        seconds = max(0.001, time.time() - self.ledger.started)
        self._read_back()
        self._join(self._pollers, self.poll_seconds + ATTEMPT_TIMEOUT)
        self._report = {
            **self.ledger.report(),
            "url": self.url,
            "users": [user.user_id for user in self.users],
            "room": self.room,
            "seconds": round(seconds, 1),
            "cpu_share": round(cpu / seconds, 3),
        }
        return self._report

    def _prepare(self) -> None:
        first, *others = self.users
        for user in self.users:
            if user.device_id is None:
                with user.client() as client:
                    user.device_id = client.whoami().get("device_id")
        with first.client() as client:
            self.room = client.create_room(
                preset="private_chat",
                name=f"Witness {self.run}",
                invite=[user.user_id for user in others],
            )
        for user in others:
            with user.client() as client:
                client.join(self.room)
        for user in self.users:
            with user.client() as client:
                user.since = client.sync(filter=self._filter())["next_batch"]

    def _spawn(
        self, group: list[threading.Thread], work: Callable[[User], None], user: User
    ) -> None:
        name = f"{work.__name__.strip('_')}-{user.number}"
        thread = threading.Thread(target=self._guarded, args=(work, user), name=name, daemon=True)
        group.append(thread)
        thread.start()

    def _guarded(self, work: Callable[[User], None], user: User) -> None:
        # A witness with a dead thread would see less, and report no loss for it.
        try:
            work(user)
        except Exception as error:
            name = threading.current_thread().name
            self.ledger.problem(f"thread {name} died: {type(error).__name__}: {error}")

    def _join(self, threads: list[threading.Thread], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.ledger.problem(f"thread {thread.name} still waits after {seconds:.0f} s")

    def _drain(self) -> None:
        deadline = time.monotonic() + self.drain
        while self.ledger.outstanding() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self.ledger.outstanding()
        if left:
            self.ledger.problem(f"{left} deliveries still outstanding after {self.drain:.0f} s")

    def _read_back(self) -> None:
        reader = self.users[0]
        with reader.client(self.ledger) as client:
            try:
                # This last message also ends every poll in the room.
                self._counted("send", client, lambda: client.send_text(self.room, "bye"))
                newest = client.sync(filter=self._filter(limit=1))["next_batch"]
                for event in client.history(self.room, newest):
                    body = self._body(event)
                    if body:
                        self.ledger.read(body, event["event_id"])
            except MatrixError as error:
                self.ledger.problem(f"the history could not be read back: {error}")
            for media in self.ledger.media:
                with contextlib.suppress(MatrixError):
                    if _sha256(client.download(media.mxc)) == media.sha256:
                        self.ledger.intact(media)
            # And this one the polls without a room.
            idle: dict[str, dict[str, Json]] = {
                user.user_id: {user.device_id or "*": {}} for user in self._idle_users()
            }
            with contextlib.suppress(MatrixError):
                client.to_device(BYE, idle, f"witness-{self.run}-bye")
        for user in self.users[1:]:
            with contextlib.suppress(MatrixError), user.client() as client:
                client.leave(self.room)

    # --- chatting -----------------------------------------------------------------------------

    def _ticks(self, seconds: float, offset: float) -> Iterator[int]:
        """Counts up at a steady rate until the end; a tick that came late is not made up for."""
        due = time.monotonic() + offset
        number = 0
        while not self._done_sending.wait(max(0.0, due - time.monotonic())):
            yield number
            number += 1
            due = max(due + seconds, time.monotonic())

    def _send(self, user: User) -> None:
        share = self.interval * user.number / len(self.users)
        with user.client(self.ledger) as client:
            for number in self._ticks(self.interval, share):
                body = f"witness {self.run} {user.number}.{number}"
                # The transaction id is made once: the client's own retries carry the same one.
                txn = f"witness-{self.run}-{user.number}-{number}"
                try:
                    event = self._counted("send", client, self._message(client, body, txn))
                except MatrixError:
                    self.ledger.unacknowledged(body)
                else:
                    self.ledger.acknowledged(body, event)
                    self._last_event = event

    def _message(self, client: Client, body: str, txn: str) -> Callable[[], str]:
        return lambda: client.send_text(self.room, body, txn)

    def _errands(self, user: User) -> None:
        # Different users begin at different errands, so that each sort is always under way.
        jobs: list[Callable[[User, Client, int], None]] = [
            self._upload,
            self._to_device,
            self._receipt,
            self._to_device,
            self._profile,
            self._to_device,
            self._messages,
            self._to_device,
            self._read_markers,
            self._to_device,
        ]
        offset = self.errand_seconds * user.number / len(self.users)
        with user.client(self.ledger) as client:
            for number in self._ticks(self.errand_seconds, offset):
                job = jobs[(number + 3 * user.number) % len(jobs)]
                with contextlib.suppress(MatrixError):
                    job(user, client, number)

    def _counted(self, kind: str, client: Client, ask: Callable[[], Any]) -> Any:
        at, clock = time.time(), time.monotonic()
        method, path = _KINDS[kind]
        try:
            return ask()
        finally:
            self.ledger.answered(kind, method, path, at, time.monotonic() - clock)

    def _recipients(self) -> list[User]:
        return self.users[: (len(self.users) + 1) // 2]

    def _idle_users(self) -> list[User]:
        return self.users[(len(self.users) + 1) // 2 :]

    def _to_device(self, user: User, client: Client, number: int) -> None:
        recipients = self._recipients()
        to = recipients[(user.number + 1) % len(recipients)]
        name = f"{user.number}.{number}"
        messages = {to.user_id: {to.device_id or "*": {"run": self.run, "number": name}}}
        txn = f"witness-{self.run}-{user.number}-d{number}"
        self._counted("to_device", client, lambda: client.to_device(TO_DEVICE, messages, txn))
        self.ledger.device_acknowledged(name, to.user_id)

    def _upload(self, user: User, client: Client, number: int) -> None:
        data = random.randbytes(random.randint(*MEDIA_BYTES))
        name = f"witness-{user.number}-{number}.bin"
        mxc = self._counted(
            "upload", client, lambda: client.upload(data, "application/octet-stream", name)
        )
        media = Media(mxc, _sha256(data))
        self.ledger.uploaded(media)
        found = self._counted("download", client, lambda: client.download(mxc))
        if _sha256(found) != media.sha256:
            self.ledger.problem(f"{mxc} was not intact straight after its upload")

    def _receipt(self, user: User, client: Client, number: int) -> None:
        event = self._last_event
        if event:
            self._counted("receipt", client, lambda: client.receipt(self.room, event))

    def _read_markers(self, user: User, client: Client, number: int) -> None:
        event = self._last_event
        if event:
            self._counted("read_markers", client, lambda: client.read_markers(self.room, event))

    def _profile(self, user: User, client: Client, number: int) -> None:
        other = self.users[number % len(self.users)].user_id
        self._counted("profile", client, lambda: client.profile(other))

    def _messages(self, user: User, client: Client, number: int) -> None:
        since = user.since
        if since:
            self._counted("messages", client, lambda: client.messages(self.room, since, limit=10))

    # --- long polls ---------------------------------------------------------------------------

    def _filter(self, limit: int = 100) -> Json:
        nothing: Json = {"types": []}
        return {
            "presence": nothing,
            "account_data": nothing,
            "room": {
                "rooms": [self.room],
                "timeline": {"limit": limit},
                "state": {"lazy_load_members": True},
                "account_data": nothing,
                "ephemeral": nothing,
            },
        }

    def _poll(self, user: User) -> None:
        with user.client(self.ledger) as client:
            for answer in self._polls(client, user.since, self._filter()):
                self._take(user, client, answer)
                user.since = answer["next_batch"]
                self._done.wait(POLL_PAUSE)

    def _idle_poll(self, user: User) -> None:
        nothing: Json = {"types": []}
        quiet = {"presence": nothing, "account_data": nothing, "room": {"rooms": []}}
        with user.client(self.ledger) as client:
            for answer in self._polls(client, user.since, quiet):
                self._take_devices(user, answer)
                self._done.wait(POLL_PAUSE)

    def _polls(self, client: Client, since: str | None, filter: Json) -> Iterator[Json]:
        """Long-polls until the end; after a cut one, first asks without waiting, as clients do."""
        path = "/_matrix/client/r0/sync"
        cut_at: float | None = None
        pause = 0.1
        while not self._done.is_set():
            draining = self._done_sending.is_set()
            asked = 0 if cut_at is not None else 1 if draining else self.poll_seconds
            at, clock = time.time(), time.monotonic()
            try:
                answer = client.sync(since, asked * 1000, filter, retry=False)
            except MatrixError as error:
                now = time.monotonic()
                self.ledger.polled(asked, at, now - clock, path, cut=asked > 0)
                cut_at = cut_at or now
                self._done.wait(error.retry_after or pause)
                pause = min(2.0, pause * 2)
                continue
            now = time.monotonic()
            self.ledger.polled(asked, at, now - clock, path)
            if cut_at is not None:
                self.ledger.reconnected(at - (clock - cut_at), now - cut_at, path)
            cut_at, pause = None, 0.1
            since = answer["next_batch"]
            yield answer

    def _take(self, user: User, client: Client, answer: Json) -> None:
        self._take_devices(user, answer)
        room = answer.get("rooms", {}).get("join", {}).get(self.room)
        if not room:
            return
        timeline = room.get("timeline", {})
        if timeline.get("limited"):
            self._fill_gap(user, client, timeline["prev_batch"])
        for event in timeline.get("events", []):
            self._show(user, event)

    def _show(self, user: User, event: Json) -> None:
        body = self._body(event)
        if body:
            self.ledger.shown(user.user_id, body, event["event_id"])

    def _fill_gap(self, user: User, client: Client, token: str) -> None:
        for _ in range(GAP_PAGES):
            page = client.messages(self.room, token)
            known = [self.ledger.knows(user.user_id, event["event_id"]) for event in page["chunk"]]
            for event, old in zip(page["chunk"], known, strict=True):
                if not old:
                    self._show(user, event)
            if any(known) or not page["chunk"] or not page.get("end"):
                return
            token = page["end"]
        self.ledger.problem(f"a gap of {user.user_id} was longer than {GAP_PAGES} pages")

    def _take_devices(self, user: User, answer: Json) -> None:
        for event in answer.get("to_device", {}).get("events", []):
            content = event.get("content", {})
            if event.get("type") == TO_DEVICE and content.get("run") == self.run:
                self.ledger.device_shown(user.user_id, content["number"])

    def _body(self, event: Json) -> str | None:
        body = event.get("content", {}).get("body")
        mark = f"witness {self.run} "
        return body if isinstance(body, str) and body.startswith(mark) else None


_ROOM = "/_matrix/client/r0/rooms/{room}"
_KINDS = {
    "send": ("PUT", f"{_ROOM}/send/m.room.message/{{txn}}"),
    "to_device": ("PUT", f"/_matrix/client/r0/sendToDevice/{TO_DEVICE}/{{txn}}"),
    "upload": ("POST", "/_matrix/media/r0/upload"),
    "download": ("GET", "/_matrix/media/r0/download/{mxc}"),
    "receipt": ("POST", f"{_ROOM}/receipt/m.read/{{event}}"),
    "read_markers": ("POST", f"{_ROOM}/read_markers"),
    "profile": ("GET", "/_matrix/client/r0/profile/{user}"),
    "messages": ("GET", f"{_ROOM}/messages"),
}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
