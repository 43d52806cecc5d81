"""Synapse's move: the order of its steps, and the way back from each of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from saltworks import moves, owners, switch
from saltworks.minions import MachineError

from tests.render.stages import MAP
from tests.unit.house import held, living
from tests.unit.modules.minion_modules import load

MOVE = moves.of_synapse(MAP)


class Cluster:
    """Three machines that answer as a real door and two real Synapses would."""

    def __init__(self, door: str = "legacy", runs: tuple[str, ...] = ("legacy",)) -> None:
        self.door = door
        self.runs = set(runs)
        self.calls: list[str] = []
        self.pulled: list[list[Any]] = []
        #: Calls that fail, each as often as it is in the list.
        self.broken: list[str] = []
        #: What happens when a call fails after it did its work.
        self.late = False

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        name = " ".join([minion, function, *(str(a) for a in args)])
        self.calls.append(name)
        act = getattr(self, f"_{function.replace('.', '_')}")
        if name in self.broken:
            self.broken.remove(name)
            if self.late:
                act(minion, *args, **kwargs)
            raise MachineError(f"{name} failed")
        answer = act(minion, *args, **kwargs)
        # Two of them would damage it.
        assert self.runs != {"legacy", "synapse"}, "two Synapses on one database"
        return answer

    def _door_status(self, minion: str) -> dict[str, Any]:
        if self.door == "closed":
            return {"state": "closed", "target": None}
        return {"state": "open", "target": self.door}

    def _door_announce(self, minion: str, seconds: int) -> float:
        return float(seconds)

    def _door_close(self, minion: str) -> dict[str, float]:
        self.door = "closed"
        return {"seconds": 0.25}

    def _door_open(self, minion: str, target: str) -> dict[str, float]:
        assert target in self.runs, f"the door opens to {target}, where nothing runs"
        self.door = target
        return {"seconds": 0.5}

    def _synapse_move_leave(self, minion: str, **row: Any) -> dict[str, float]:
        assert self.door == "closed", "stopped under people's eyes"
        self.runs.discard(minion)
        return {"stop": 1.0}

    def _synapse_move_arrive(self, minion: str, **row: Any) -> dict[str, float]:
        assert row["enable"] is (minion == "legacy"), "a machine that is given up starts it"
        self.runs.add(minion)
        self.pulled.append(row["pulls"])
        return {"start": 2.0}

    def _synapse_move_stop(self, minion: str, service: str) -> bool:
        self.runs.discard(minion)
        return True


STATUS, ANNOUNCE = "proxy door.status", "proxy door.announce 31"
CLOSE = "proxy door.close"
LEAVE, ARRIVE = "legacy synapse_move.leave", "synapse synapse_move.arrive"
OPEN = "proxy door.open synapse"
STOP, RESUME = "synapse synapse_move.stop synapse", "legacy synapse_move.arrive"
REOPEN = "proxy door.open legacy"
THERE = [STATUS, ANNOUNCE, "moving", CLOSE, LEAVE, ARRIVE]
WAY_BACK = [STATUS, STOP, RESUME, REOPEN]


def conduct(
    cluster: Cluster, clock: Callable[[], float] = lambda: 0.0, arrived: bool = False
) -> dict[str, Any]:
    return switch.conduct(cluster, MOVE, cluster.calls.append, arrived, clock)


def test_the_new_place_is_recorded_before_the_door_opens_to_it() -> None:
    cluster = Cluster()
    ticks = iter([10.0, 14.5])
    done = conduct(cluster, lambda: next(ticks))
    assert cluster.calls == [*THERE, "arrived", OPEN]
    assert (cluster.door, cluster.runs) == ("synapse", {"synapse"})
    assert done == {
        "changed": True, "close": 0.25, "leave": {"stop": 1.0}, "arrive": {"start": 2.0},
        "open": 0.5, "window": 4.5,
    }


def test_what_has_moved_is_not_moved_again() -> None:
    cluster = Cluster()
    conduct(cluster)
    cluster.calls.clear()
    assert conduct(cluster) == {"changed": False}
    assert cluster.calls == [STATUS, "arrived"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", [CLOSE, LEAVE, ARRIVE])
def test_a_step_that_fails_is_gone_back_from_and_the_next_run_moves(step: str, late: bool) -> None:
    cluster = Cluster()
    cluster.broken, cluster.late = [step], late
    with pytest.raises(switch.Returned, match=f"{step} failed.*serves on legacy as before"):
        conduct(cluster)
    # A door that never closed leads to the old place still: nothing is to be undone.
    way = [STATUS] if (step, late) == (CLOSE, False) else WAY_BACK
    assert cluster.calls == [*THERE[: THERE.index(step) + 1], *way, "returned"]
    assert (cluster.door, cluster.runs) == ("legacy", {"legacy"})
    assert conduct(cluster)["changed"]
    assert (cluster.door, cluster.runs) == ("synapse", {"synapse"})


@pytest.mark.parametrize("step", [STATUS, ANNOUNCE])
def test_what_fails_before_the_door_is_touched_needs_no_way_back(step: str) -> None:
    cluster = Cluster()
    cluster.broken = [step]
    with pytest.raises(MachineError):
        conduct(cluster)
    assert cluster.calls == THERE[: THERE.index(step) + 1]
    assert (cluster.door, cluster.runs) == ("legacy", {"legacy"})


def test_a_new_machine_that_is_silent_leaves_the_door_shut_and_the_old_synapse_stopped() -> None:
    cluster = Cluster()
    cluster.broken, cluster.late = [ARRIVE, STOP], True
    with pytest.raises(switch.Stranded) as stranded:
        conduct(cluster)
    # For all that is known it runs there.
    assert cluster.calls == [*THERE, STATUS, STOP]
    assert cluster.door == "closed"
    assert "legacy" not in cluster.runs
    for part in (f"{ARRIVE} failed", f"{STOP} failed", "stays shut", "orch.m2.rollback"):
        assert part in str(stranded.value)
    # Once it answers again, either way works.
    switch.back(cluster, MOVE)
    assert (cluster.door, cluster.runs) == ("legacy", {"legacy"})


def test_a_door_that_does_not_open_at_the_new_place_is_finished_by_the_next_run() -> None:
    cluster = Cluster()
    cluster.broken = [OPEN]
    with pytest.raises(MachineError) as failed:
        conduct(cluster)
    assert not isinstance(failed.value, switch.Stranded)
    # Nobody got through to it, so it has not arrived yet.
    assert cluster.calls == [*THERE, "arrived", OPEN, STATUS, "moving"]
    cluster.calls.clear()
    assert conduct(cluster)["changed"]
    # The door is shut: nobody is there to be told.
    assert cluster.calls == [STATUS, "moving", CLOSE, LEAVE, ARRIVE, "arrived", OPEN]


def test_what_arrived_goes_on_and_never_back() -> None:
    # The door was opened, people wrote, and somebody closed it again.
    cluster = Cluster(door="closed", runs=())
    cluster.broken = [ARRIVE]
    with pytest.raises(MachineError) as failed:
        conduct(cluster, arrived=True)
    assert not isinstance(failed.value, switch.Returned | switch.Stranded)
    assert cluster.calls == [STATUS, ARRIVE]
    cluster.calls.clear()
    assert conduct(cluster, arrived=True)["changed"]
    # Nothing is fetched: that would undo what was written there since.
    assert cluster.calls == [STATUS, ARRIVE, "arrived", OPEN]
    assert cluster.pulled == [[]]


def test_what_arrived_stays_recorded_when_the_door_does_not_open() -> None:
    # Else the next run would fetch again what people have changed here since.
    cluster = Cluster(door="closed", runs=())
    cluster.broken = [OPEN]
    with pytest.raises(MachineError):
        conduct(cluster, arrived=True)
    assert cluster.calls == [STATUS, ARRIVE, "arrived", OPEN]


def test_a_run_that_died_with_the_door_shut_is_finished_without_an_announcement() -> None:
    cluster = Cluster(door="closed", runs=())
    assert conduct(cluster)["changed"]
    assert ANNOUNCE not in cluster.calls
    assert (cluster.door, cluster.runs) == ("synapse", {"synapse"})


def test_the_way_back_is_refused_once_people_write_at_the_new_place() -> None:
    cluster = Cluster(door="synapse", runs=("synapse",))
    with pytest.raises(MachineError, match=r"moved to synapse.*would lose"):
        switch.back(cluster, MOVE)
    assert cluster.calls == [STATUS]
    # An answer that came too late: the door did open, although the call failed.
    cluster = Cluster()
    cluster.broken, cluster.late = [OPEN], True
    with pytest.raises(MachineError):
        conduct(cluster)
    with pytest.raises(MachineError, match="would lose"):
        switch.back(cluster, MOVE)
    assert cluster.runs == {"synapse"}


def test_the_way_back_is_refused_for_what_is_recorded_as_arrived() -> None:
    cluster = Cluster(door="closed", runs=())
    with pytest.raises(MachineError, match="would lose"):
        switch.back(cluster, MOVE, arrived=True)
    assert cluster.calls == [STATUS]


def test_the_way_back_taken_twice_is_the_same() -> None:
    cluster = Cluster(door="closed", runs=("synapse",))
    switch.back(cluster, MOVE)
    assert cluster.calls == WAY_BACK
    cluster.calls.clear()
    switch.back(cluster, MOVE)
    assert cluster.calls == [STATUS]
    assert (cluster.door, cluster.runs) == ("legacy", {"legacy"})


def test_a_machine_that_is_gone_for_good_is_not_asked() -> None:
    cluster = Cluster(door="closed", runs=())
    cluster.broken = [STOP]
    switch.back(cluster, MOVE, gone=True)
    assert cluster.calls == [STATUS, RESUME, REOPEN]


@pytest.mark.parametrize("step", [RESUME, REOPEN])
def test_a_way_back_that_fails_says_so_and_opens_nothing(step: str) -> None:
    cluster = Cluster(door="closed", runs=("synapse",))
    cluster.broken = [step]
    with pytest.raises(MachineError, match="failed"):
        switch.back(cluster, MOVE)
    assert cluster.door == "closed"


class Store:
    """``salt.cache.Cache`` of the placement, and all that it ever was, and of the lock."""

    def __init__(self, **row: Any) -> None:
        self.row = row
        self.lock: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []

    def fetch(self, bank: str, key: str) -> Any:
        return {"placement": self.row, "lock": self.lock}[key]

    def store(self, bank: str, key: str, data: Any) -> None:
        assert key == "placement"
        self.row = data
        self.history.append(data)


class Runner:
    """The runner ``handover`` over a cluster and a placement record."""

    def __init__(self, cluster: Cluster, **row: Any) -> None:
        self.store = Store(**row)
        self.module: Any = load("_runners", "handover")
        vars(self.module).update(Machines=lambda opts: cluster, Tree=self)

    def of(self, opts: Any) -> Any:
        return self

    def map(self) -> Any:
        return MAP


def test_the_record_says_moving_meanwhile_and_the_new_place_afterwards() -> None:
    cluster = Cluster()
    runner = Runner(cluster, managed=True, front="proxy")
    assert runner.module.synapse()["changed"]
    assert [row.get("moving") for row in runner.store.history] == [True, False]
    assert runner.store.row == {
        "managed": True, "front": "proxy", "synapse": "synapse", "moving": False,
    }


def test_a_move_that_came_back_is_recorded_where_it_was() -> None:
    cluster = Cluster()
    runner = Runner(cluster, managed=True)
    cluster.broken = [OPEN]
    assert runner.module.synapse()["retcode"] == 1
    assert runner.store.row["moving"] is True
    # The second run fails too, and takes the way back.
    cluster.broken = [ARRIVE]
    answer = runner.module.synapse()
    assert answer["retcode"] == 1
    assert "serves on legacy as before" in answer["data"]
    assert cluster.runs == {"legacy"}
    assert (runner.store.row["synapse"], runner.store.row["moving"]) == ("legacy", False)


def test_a_stranded_move_stays_recorded_as_moving() -> None:
    cluster = Cluster()
    runner = Runner(cluster, managed=True)
    cluster.broken, cluster.late = [ARRIVE, STOP], True
    assert "stays shut" in runner.module.synapse()["data"]
    assert runner.store.row["moving"] is True
    runner.module.back()
    assert (runner.store.row["synapse"], runner.store.row["moving"]) == ("legacy", False)


class Killed(BaseException):
    """The conductor's process is gone."""


class Deadly(Cluster):
    """Its caller dies at a call, before or after it did its work."""

    def __init__(self, dies_at: int, late: bool) -> None:
        super().__init__()
        self.left, self.dies_late = dies_at, late

    def call(self, minion: str, function: str, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        dies = self.left == 0
        if dies and not self.dies_late:
            raise Killed
        answer = super().call(minion, function, *args, **kwargs)
        if dies:
            raise Killed
        return answer


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("then", ["synapse", "back"])
def test_killed_at_any_call_the_next_run_finishes_it_or_takes_it_back(
    then: str, late: bool
) -> None:
    calls = [STATUS, ANNOUNCE, CLOSE, LEAVE, ARRIVE, OPEN]
    for dies_at in range(1, len(calls) + 1):
        cluster = Deadly(dies_at, late)
        runner = Runner(cluster, managed=True)
        with pytest.raises(Killed):
            runner.module.synapse()
        answer = getattr(runner.module, then)()
        if then == "back" and calls[dies_at - 1] == OPEN:
            # It was recorded before the door opened, or people are there.
            assert "would lose" in answer["data"]
            answer = runner.module.synapse()
            there = "synapse"
        else:
            there = "legacy" if then == "back" else "synapse"
        assert (cluster.door, cluster.runs) == (there, {there}), (dies_at, answer)
        assert runner.store.row.get("synapse", "legacy") == there
        assert not runner.store.row.get("moving")


def test_a_refused_way_back_changes_no_record() -> None:
    runner = Runner(Cluster(door="synapse", runs=("synapse",)), synapse="synapse", moving=False)
    answer = runner.module.back()
    assert answer["retcode"] == 1
    assert "would lose" in answer["data"]
    assert runner.store.history == []


@pytest.mark.parametrize("step", ["synapse", "back"])
def test_beside_another_run_nothing_is_moved_either_way(step: str) -> None:
    cluster = Cluster(door="closed", runs=())
    runner = Runner(cluster, managed=True, moving=True)
    with living() as owner:
        runner.store.lock = held(owner, "milestone m2")
        answer = getattr(runner.module, step)()
        assert answer["retcode"] == 1
        assert f"m2: is running already (process {owner.pid})" in answer["data"]
        assert (cluster.calls, runner.store.history) == ([], [])
    # It has died; and who asks from within the run itself is no other.
    for harmless in (owner, owners.this_process()):
        runner.store.lock = held(harmless, "milestone m2")
        assert "is running already" not in str(getattr(runner.module, step)())


def test_without_machines_to_move_to_nothing_is_called() -> None:
    cluster = Cluster()
    runner = Runner(cluster)
    alone = {name: MAP["machines"][name] for name in ("salt", "legacy")}
    runner.map = lambda: {**MAP, "machines": alone}  # type: ignore[method-assign]
    for step in (runner.module.synapse, runner.module.back, runner.module.name_moved):
        answer = step()
        assert answer["retcode"] == 1
        assert "nowhere to move to" in answer["data"]
    assert cluster.calls == []


def test_a_name_leads_to_each_of_its_addresses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = load("_runners", "handover")

    def lookup(name: str, port: None) -> list[Any]:
        if name == "nowhere.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        rows = [("198.18.0.11", 0), ("198.18.0.11", 0), ("2001:db8::11", 0, 0, 0)]
        return [(socket.AF_INET, kind, 6, "", row) for kind, row in enumerate(rows)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert module.resolved("chat.lale.test") == {"198.18.0.11", "2001:db8::11"}
    assert module.resolved("nowhere.test") == set()


@pytest.mark.parametrize(
    ("found", "idle", "said"),
    [
        ({"198.18.0.11"}, 61.0, None),
        ({"198.18.0.11"}, None, None),
        ({"198.18.0.10"}, 61.0, "leads to 198.18.0.10"),
        ({"198.18.0.10", "198.18.0.11"}, 61.0, "leads to 198.18.0.10, 198.18.0.11"),
        (set(), 61.0, "leads to nowhere"),
        ({"198.18.0.11"}, 4.0, "a client came by it 4 s ago"),
    ],
)
def test_the_old_machine_may_go_when_the_name_leads_to_the_proxy_alone_and_nobody_comes_by(
    found: set[str], idle: float | None, said: str | None
) -> None:
    cluster = Cluster()
    vars(cluster)["_nginx_config_idle_seconds"] = lambda minion, site: idle
    runner = Runner(cluster)
    runner.module.resolved = lambda name: found
    answer = runner.module.name_moved()
    assert cluster.calls == ["legacy nginx_config.idle_seconds saltworks-chat"]
    if said is None:
        assert answer == "chat.lale.test leads to 198.18.0.11, nobody comes by legacy"
    else:
        assert answer["retcode"] == 1
        assert said in answer["data"]
