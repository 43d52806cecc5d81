"""Writes through one process, reads through another, at once, while faults come and go."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from .client import CLIENT, Account, Answered, Http
from .ledger import Ledger

#: Seconds in which everything that was sent must have come by /sync once nobody sends any more.
LAST_SECONDS = 20

#: Seconds after the acknowledgement in which every process must have dropped its cache entry.
CACHE_SECONDS = 0.7

#: A read that meets an error is asked again for so long: with a new primary there are such.
ERROR_SECONDS = 30

#: Seconds between two faults, at most.
GAP_SECONDS = 5

PASSWORD = "a long one 1"
FILTER = '{"room":{"timeline":{"limit":100}},"presence":{"types":[]}}'

Fault = Callable[[], None]


@dataclass(frozen=True)
class Places:
    """Base URLs of processes.

    :param main: where people register.
    :param writers: that take writes.
    :param readers: that serve reads, of which at least two differ.
    :param accounts: user ids and passwords of people who are there, one more than are followed,
        where nobody may register.
    """

    main: str
    writers: Sequence[str]
    readers: Sequence[str]
    accounts: Sequence[tuple[str, str]] = ()


@dataclass
class Run:
    """One run of the checker.

    :param places: where it asks.
    :param faults: each makes one fault and mends it; they come in turn by chance, with ``seed``.
    :param people: whose /sync is followed.
    """

    places: Places
    faults: Sequence[Fault] = ()
    people: int = 6
    seed: int = 1
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self._http = Http()
        self._ended = threading.Event()
        self._quiet = threading.Event()
        self._numbers = itertools.count()
        self._name = f"c{random.randrange(1 << 40):x}"
        self._sent: set[str] = set()
        self._seen: list[set[str]] = [set() for _ in range(self.people)]
        self._crashes: list[str] = []

    def go(self, seconds: float, checks: int = 0) -> Ledger:
        """Check until both are reached; the tally.

        :raises AssertionError: the checker itself has failed.
        """
        self._meet()
        busy = [self._events, self._events, self._account_data, self._logins, self._cache]
        chains = [partial(self._chain, number) for number in range(self.people)]
        if self.faults:
            busy.append(self._trouble)
        workers = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in busy]
        followers = [
            threading.Thread(target=self._guard, args=(work,), daemon=True) for work in chains]
        try:
            for thread in (*workers, *followers):
                thread.start()
            end = time.monotonic() + seconds
            while (time.monotonic() < end or self._checks < checks) and not self._crashes:
                self._ended.wait(0.2)
            self._ended.set()
            for thread in workers:
                thread.join(120)
                assert not thread.is_alive(), "a checker's thread did not end within 120 s"
            self._settle()
        finally:
            # An interrupted run asks nobody any more.
            self._ended.set()
            self._quiet.set()
        for thread in followers:
            thread.join(120)
        assert not self._crashes, f"the checker itself: {self._crashes}; {self.ledger}"
        return self.ledger

    @property
    def _checks(self) -> int:
        """Each event is a check of each chain, at the end."""
        return self.ledger.total + self.people * len(self._sent)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._crashes.append(f"{type(error).__name__}: {error}")

    def _meet(self) -> None:
        http, main = self._http, self.places.main
        here = self.places.accounts[: self.people + 1]
        people = [http.login(main, *account) for account in here] or [
            http.register(main, f"{self._name}-{n}", PASSWORD) for n in range(self.people + 1)]
        assert len(people) == self.people + 1, f"{len(people)} accounts for {self.people} people"
        self._writer, *self._followers = people
        self._password = here[0][1] if here else PASSWORD
        self._room = str(http.ask(
            main, "POST", f"{CLIENT}/createRoom", self._writer.token,
            {"preset": "public_chat"})["room_id"])
        for who in self._followers:
            http.ask(main, "POST", f"{CLIENT}/join/{quote(self._room)}", who.token, {})

    def _trouble(self) -> None:
        chance = random.Random(self.seed)
        while not self._ended.is_set():
            chance.choice(self.faults)()
            # Long enough, mostly, for a standby to serve again.
            self._ended.wait(chance.uniform(0, GAP_SECONDS))

    def _two(self) -> tuple[str, str]:
        """A writer, and another process that reads."""
        writer = random.choice(self.places.writers)
        return writer, random.choice([url for url in self.places.readers if url != writer])

    def _read(self, base: str, path: str, who: Account) -> dict[str, object] | None:
        """What is there; None if there is nothing. Errors are noted, and asked again."""
        end = time.monotonic() + ERROR_SECONDS
        while True:
            try:
                return self._http.ask(base, "GET", path, who.token)
            except Answered as error:
                if error.status in (401, 403, 404):
                    return None
                self.ledger.error(str(error))
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _write(self, write: Callable[[], object]) -> object | None:
        """What was acknowledged; None if nothing was, which is an error but no loss."""
        try:
            return write()
        except Answered as error:
            self.ledger.error(str(error))
            time.sleep(0.2)
            return None

    def _events(self) -> None:
        while not self._ended.is_set():
            to, at = self._two()
            text = f"{next(self._numbers)}"
            sent = self._write(partial(self._http.send, to, self._writer, self._room, text))
            if sent is None:
                continue
            self._sent.add(str(sent))
            path = f"{CLIENT}/rooms/{quote(self._room)}/event/{quote(str(sent))}"
            got = self._read(at, path, self._writer)
            self.ledger.check("event", got is not None, f"{sent} at {at}")

    def _account_data(self) -> None:
        while not self._ended.is_set():
            to, at = self._two()
            number = next(self._numbers)
            path = f"{self._writer.path}/account_data/org.x.{number}"
            if self._write(partial(
                    self._http.ask, to, "PUT", path, self._writer.token, {"n": number})) is None:
                continue
            got = self._read(at, path, self._writer)
            self.ledger.check("account data", got == {"n": number}, f"{path} at {at}: {got}")

    def _logins(self) -> None:
        while not self._ended.is_set():
            to, at = self._two()
            user = self._writer.user_id
            made = self._write(partial(self._http.login, to, user, self._password))
            if made is None:
                continue
            assert isinstance(made, Account)
            got = self._read(at, f"{CLIENT}/account/whoami", made)
            self.ledger.check("login", got is not None, f"whoami at {at}")
            self._ended.wait(0.1)

    def _cache(self) -> None:
        """One key is overwritten while all readers are asked for it, as fast as it goes."""
        who = self._followers[0]
        path = f"{who.path}/account_data/org.cache"
        hammering = [threading.Thread(target=self._hammer, args=(url, path, who))
                     for url in self.places.readers for _ in range(2)]
        first = self.places.writers[0]
        self._write(partial(self._http.ask, first, "PUT", path, who.token, {"n": -1}))
        for thread in hammering:
            thread.start()
        while not self._ended.is_set():
            number, to = next(self._numbers), random.choice(self.places.writers)
            if self._write(partial(
                    self._http.ask, to, "PUT", path, who.token, {"n": number})) is None:
                continue
            time.sleep(CACHE_SECONDS)
            for at in self.places.readers:
                got = self._read(at, path, who)
                self.ledger.check("cache", got == {"n": number}, f"{number} at {at}: {got}")
        for thread in hammering:
            thread.join(60)

    def _hammer(self, url: str, path: str, who: Account) -> None:
        while not self._ended.is_set():
            self._read(url, path, who)

    def _chain(self, number: int) -> None:
        """One person's /sync, each with the token of the one before, wherever it goes."""
        who, seen = self._followers[number], self._seen[number]
        since = ""
        while not self._quiet.is_set():
            query = {"since": since, "timeout": "2000"} if since else {}
            at = random.choice(self.places.readers)
            try:
                got = self._http.ask(
                    at, "GET", f"{CLIENT}/sync", who.token, filter=FILTER, **query)
            except Answered as error:
                self.ledger.error(str(error))
                time.sleep(0.2)
                continue
            joined = got.get("rooms", {}).get("join", {}).get(self._room, {})
            timeline = joined.get("timeline", {})
            found = {event["event_id"] for event in timeline.get("events", [])}
            if timeline.get("limited") and since:
                self._fill(who, timeline["prev_batch"], seen, at)
            seen |= found
            since = got["next_batch"]

    def _fill(self, who: Account, start: str, seen: set[str], at: str) -> None:
        """What a gap of the timeline stands for, back to what was seen before it."""
        path = f"{CLIENT}/rooms/{quote(self._room)}/messages"
        while True:
            got = self._http.ask(at, "GET", path, who.token, dir="b", limit="100",
                                 **{"from": start})
            chunk = {event["event_id"] for event in got["chunk"]}
            done = bool(chunk & seen) or "end" not in got
            seen |= chunk
            if done:
                return
            start = got["end"]

    def _settle(self) -> None:
        """Once all is sent, every chain must come to hold all of it."""
        end = time.monotonic() + LAST_SECONDS
        while time.monotonic() < end and any(self._sent - seen for seen in self._seen):
            time.sleep(0.1)
        for number, seen in enumerate(self._seen):
            lost = self._sent - seen
            self.ledger.check("sync", True, "", len(self._sent) - len(lost))
            for event in lost:
                self.ledger.check("sync", False, f"{event} never came to person {number}")
