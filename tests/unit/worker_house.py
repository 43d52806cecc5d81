"""A master after M4's beginning with the runner ``worker``, and machines that only answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from saltworks import owners, plan, registry, telling
from saltworks.errors import Problem
from saltworks.minions import ROLE_SLS, MachineError

from tests import cluster
from tests.cluster import WORKER_MAP
from tests.render.stages import AFTER_M3
from tests.unit.house import Records, held
from tests.unit.modules.minion_modules import load

URL = "http://198.19.0.1:8101"
STATES = {"a": {"changes": {}}, "b": {"changes": {"new": 1}}}
MAIN_URL = "http://198.18.0.12:8008"


class House:
    """A tree after M4's beginning, with one member; ``calls`` says what machines were asked."""

    def __init__(self, tmp_path: Path, state: registry.State = "joining", kind: str = "sync"):
        self.store = Records(
            placement={**AFTER_M3, "redis": cluster.REDIS},
            registry={f"{kind}-1": asdict(cluster.member(f"{kind}-1", kind, 1, state))},
        )
        self.records = tmp_path
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {
            "network.ip_addrs": ["127.0.0.1", "198.19.0.1"],
            "network.ip_addrs6": [],
            "synapse_worker.healthy": 1.5,
            "synapse_worker.caught_up": {"streams": 20, "seconds": 0.5},
            "synapse_worker.served": {"sync-1-1": {"request": "GET /sync", "status": "401"}},
            "synapse_worker.emptied": {"seconds": 31.0, "left": 0},
            "synapse_worker.answering": self.health,
            "synapse_worker.emptied_here": {"seconds": 0.0, "left": 0},
            "state.sls": lambda sls: dict(STATES) if sls == ROLE_SLS else {},
            "door.status": {"state": "open"},
            "door.close": {"seconds": 0.2},
            "door.open": {"seconds": 0.1},
        }
        #: Who does not answer Salt, which processes not the front, and what fails where.
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.failing: dict[tuple[str, ...], MachineError] = {}
        self.removed: list[str] = []
        self.module: Any = load("_runners", "worker")
        vars(self.module).update(
            Tree=self, Machines=lambda opts: Asked(self), Keys=lambda opts: self, __opts__={}
        )
        vars(self.module)["passes"] = self

    # The tree's part.
    def of(self, opts: Any) -> House:
        return self

    def map(self) -> Any:
        return WORKER_MAP

    def placement(self, cmap: Any) -> plan.Placement:
        rows = registry.of(self.store.rows["registry"]).values()
        recorded = plan.Placement.recorded(cmap, self.store.rows["placement"])
        told = self.store.rows.get(telling.TOLD, {})
        stopped = telling.stopped(told)
        return replace(recorded, members=tuple(rows), telling=tuple(told), stopped=stopped)

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        row = dict(self.store.rows.get(key, {}))
        yield row
        self.store.rows[key] = row

    # The machines', the key store's and the passes' part.
    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((minion, function, *args))
        if minion in self.silent:
            raise MachineError(f"{minion} did not answer {function}")
        for asked, error in self.failing.items():
            if self.calls[-1][: len(asked)] == asked:
                raise error
        answer = self.answers.get(function)
        return answer(*args) if callable(answer) else answer

    def many(self, minions: Any, function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for minion in minions:
            try:
                found[minion] = self.call(minion, function, *args)
            except MachineError as error:
                found[minion] = error
        return found

    def attempt(
        self, minion: str, function: str, *args: Any, **_: Any
    ) -> tuple[Any, list[Problem]]:
        try:
            return self.call(minion, function, *args), []
        except MachineError as error:
            return None, [Problem(minion, str(error), "")]

    def answering(self, minions: list[str], *_: Any) -> set[str]:
        return set(minions) - self.silent

    def health(self, urls: list[str]) -> dict[str, bool]:
        return {url: url not in self.dead for url in urls}

    def own(self) -> House:
        """The lock is this process's."""
        self.store.rows["lock"] = held(owners.this_process(), "reconcile")
        return self

    def add(self, *rows: registry.Member) -> House:
        for row in rows:
            self.store.rows["registry"][row.minion] = asdict(row)
        return self

    def asked(self, *words: str) -> list[str]:
        return [row[0] for row in self.calls if row[1 : 1 + len(words)] == words]

    def remove(self, minion: str) -> None:
        self.removed.append(minion)

    def starter(self, opts: Any) -> None:
        return None

    def poke(self, records: Any, start: Any) -> None:
        self.calls.append(("poked",))

    def state(self, minion: str = "sync-1") -> str:
        return str(self.store.rows["registry"][minion]["state"])


class Asked:
    """The machines of a house, whose ``calls`` is the list of what was asked."""

    def __init__(self, house: House) -> None:
        self.call, self.calls = house.call, house.many
        self.attempt, self.answering = house.attempt, house.answering


def joining(tmp_path: Path) -> House:
    """A second persister is about to be ready, a worker that only serves is there."""
    house = House(tmp_path, "ready", "persister").own()
    return house.add(
        cluster.member("persister-2", "persister", 2, "joining"),
        cluster.member("sync-1", "sync", 3),
    )


def cut(tmp_path: Path) -> House:
    """The run died right after the registry changed: nobody runs, the door is shut."""
    house = joining(tmp_path)
    house.failing[("synapse", "state.sls", ROLE_SLS)] = MachineError("it was killed here")
    assert "stays shut" in house.module.register("persister-2")["data"]
    assert house.placement(WORKER_MAP).telling == ("persister-2",)
    assert house.placement(WORKER_MAP).stopped == (), "what is started now has the new"
    house.failing.clear()
    house.calls.clear()
    return house
