"""Workers' machines: who there is, who is to go, and the steps of coming and going."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from saltworks import (
    admission,
    bank,
    clustermap,
    invites,
    joins,
    lock,
    members,
    membership,
    parts,
    passes,
    plan,
    registry,
    serving,
    slices,
    telling,
    telling_run,
    workers,
)
from saltworks.errors import Problem, Refused
from saltworks.keys import Keys
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines
from saltworks.plan import MAIN_REPLICATION_PORT, Placement, endpoint
from saltworks.telling_run import Ledger, Way
from saltworks.tree import Tree

log = logging.getLogger(__name__)

__opts__: dict[str, Any]

__func_alias__ = {"list_": "list"}

#: Bounds of what is waited for, in seconds.
SYNC_SECONDS, HEALTHY_SECONDS, CATCH_UP_SECONDS, SERVE_SECONDS = 120, 60, 60, 30

#: How long machines may take to answer before others are told of something, in seconds, and those
#: that say that they are still at it. Who is given up gets the longer time.
PING_SECONDS, PATIENCE_SECONDS, LAST_SECONDS = 3, 2, 10

#: A drain waits longer than the longest poll that Synapse lets a client have in practice.
DRAIN_SECONDS = 90

#: How many answers in a row make a process a healthy one.
TIMES = 3


@refusing
def list_() -> list[dict[str, Any]]:
    """The members: kind, address, state, since when, and what failed.

    CLI Example:

    .. code-block:: bash

        salt-run worker.list
    """
    return members.table(Tree.of(__opts__))


@refusing
def drain(minion: str, remove_key: bool = False) -> str:
    """Take a machine out, in peace; it stays out until :func:`undrain` or a new invite.

    :param minion: a member.
    :param remove_key: remove its key as well: it can do nothing any more.
    :raises saltworks.errors.Refused: it is no member.

    CLI Example:

    .. code-block:: bash

        salt-run worker.drain sync-2
    """
    house = Tree.of(__opts__)
    registry.known(registry.of(bank.read(house.store, registry.RECORD)), minion)
    with house.changing(admission.OUT) as rows:
        rows[minion] = {"since": lock.stamp(time.time()), "remove_key": bool(remove_key)}
    passes.poke(house.records, passes.starter(__opts__))
    return f"{minion} is to leave: salt-run worker.list shows how far it is"


@refusing
def undrain(minion: str) -> str:
    """Let a machine in again that was drained and kept its key.

    :raises saltworks.errors.Refused: it was not drained.

    CLI Example:

    .. code-block:: bash

        salt-run worker.undrain sync-2
    """
    house = Tree.of(__opts__)
    with house.changing(admission.OUT) as rows:
        if minion not in rows:
            there = ", ".join(sorted(rows)) or "none"
            raise Refused("undrain", [Problem(minion, "was not drained", f"drained: {there}")])
        del rows[minion]
    _forgiven(house, minion)
    passes.poke(house.records, passes.starter(__opts__))
    return f"{minion} may come again"


@refusing
def forget(minion: str) -> str:
    """Take a member that is gone off the list, for good.

    :raises saltworks.errors.Refused: it is no member, or not gone, or others are still to be told.

    CLI Example:

    .. code-block:: bash

        salt-run worker.forget sync-2
    """
    house = Tree.of(__opts__)
    _nobody_is_told(house, "forget", {minion})
    with house.changing(registry.RECORD) as rows:
        left = registry.rows(registry.forgotten(registry.of(rows), minion))
        rows.clear()
        rows.update(left)
    for record in (joins.RECORD, admission.OUT):
        with house.changing(record) as rows:
            rows.pop(minion, None)
    return f"{minion} is forgotten"


@refusing
def report(minion: str) -> dict[str, Any]:
    """How long each phase of a member's last join took, in seconds.

    CLI Example:

    .. code-block:: bash

        salt-run worker.report sync-2
    """
    rows = bank.read(Tree.of(__opts__).store, joins.RECORD)
    if minion not in rows:
        there = ", ".join(sorted(rows)) or "none"
        raise Refused("report", [Problem(minion, "has not joined", f"joined: {there}")])
    return joins.report(rows[minion])


@refusing
def begin(minion: str) -> dict[str, Any]:
    """A join begins, or begins again: the cluster is this process's, the member is ``joining``."""
    house, keys = Tree.of(__opts__), Keys(__opts__)
    lock.take(house, f"join of {minion}", lock.HOLD_SECONDS)
    member = registry.known(_members(house), minion)
    if member.state == "gone":
        admission.settle(house, keys, minion, member.key)
        member = _members(house)[minion]
    if member.state == "draining":
        what = f"worker.undrain {minion}, when it is gone"
        raise Refused("join", [Problem(minion, "is on its way out", f"salt-run {what}")])
    admitted = members.admitted_at(member)
    _record(house, minion, joins.begun(_row(house, minion), member, admitted, time.time()))
    return {"said": f"{minion} joins for the {member.generation}. time", "changes": {}}


@refusing
def sync(minion: str) -> dict[str, Any]:
    """The machine gets the project's modules and is asked for its address."""
    house, machines = _mine("join"), Machines(__opts__)
    cmap = _map(house)
    machines.call(minion, "saltutil.sync_all", timeout=SYNC_SECONDS)
    told = machines.call(minion, "network.ip_addrs") + machines.call(minion, "network.ip_addrs6")
    address = membership.placed(cmap, minion, told)
    with house.changing(registry.RECORD) as rows:
        rows.update(registry.rows(registry.located(registry.of(rows), minion, address)))
    _stamp(house, minion, "synced")
    return {"said": f"{minion} is at {address}", "changes": {}}


@refusing
def healthy(minion: str) -> dict[str, Any]:
    """Wait until each of its processes has answered several times in a row."""
    house = _mine("join")
    _stamp(house, minion, "highstate")
    bound = HEALTHY_SECONDS
    seconds = Machines(__opts__).call(
        minion, "synapse_worker.healthy", _urls(house, minion), times=TIMES, timeout=bound
    )
    _stamp(house, minion, "healthy")
    return {"said": f"its processes answer, after {seconds} s", "changes": {}}


@refusing
def caught_up(minion: str) -> dict[str, Any]:
    """Wait until its processes are as far as the main process."""
    house = _mine("join")
    cmap = _map(house)
    main = clustermap.address(cmap, house.placement(cmap).synapse)
    done = Machines(__opts__).call(
        minion,
        "synapse_worker.caught_up",
        _urls(house, minion),
        f"http://{endpoint(main, MAIN_REPLICATION_PORT)}",
        CATCH_UP_SECONDS,
    )
    _stamp(house, minion, "caught-up")
    return {"said": f"{done['streams']} streams, after {done['seconds']} s", "changes": {}}


@refusing
def register(minion: str) -> dict[str, Any]:
    """It may be given requests; those concerned have been told."""
    house = _mine("join")
    placement = house.placement(_map(house))
    answers = Machines(__opts__).call(
        placement.front, "synapse_worker.answering", _urls(house, minion), timeout=SERVE_SECONDS
    )
    if silent := sorted(url for url, well in answers.items() if not well):
        what = f"does not answer {placement.front} at {', '.join(silent)}"
        see = "it answers on its own machine: see the firewall and the network between the two"
        raise Refused("join", [Problem(minion, what, see)])
    return _told(house, minion, "ready", "registered")


@refusing
def routed(minion: str) -> dict[str, Any]:
    """The front has been told of it."""
    _stamp(_mine("join"), minion, "routed")
    return {"said": "the front has it", "changes": {}}


@refusing
def served(minion: str) -> dict[str, Any]:
    """Wait until each of its processes has answered a request through the front."""
    house = _mine("join")
    cmap = _map(house)
    placement = house.placement(cmap)
    found = workers.of(cmap, placement).of(minion)
    requests = serving.of_kind(found[0].kind) if found else []
    if not requests:
        return {"said": "nobody asks a worker of its kind anything", "changes": {}}
    seen = Machines(__opts__).call(
        placement.front,
        "synapse_worker.served",
        requests,
        [row.name for row in found],
        f"/var/log/nginx/{slices.SITE}.access.log",
        clustermap.address(cmap, placement.front),
        cmap["public"]["ports"][0],
        cmap["public"]["name"],
        timeout=SERVE_SECONDS + 15,
    )
    _stamp(house, minion, "served")
    said = "; ".join(f"{name}: {row['request']} {row['status']}" for name, row in seen.items())
    return {"said": f"seen in the front's log: {said}", "changes": {}}


@refusing
def finish(minion: str) -> dict[str, Any]:
    """Its join has come to its end."""
    house = _mine("join")
    _record(house, minion, joins.ended(_row(house, minion), [], time.time()))
    total = joins.report(_row(house, minion))["total_seconds"]
    return {"said": f"joined in {total} s", "changes": {"joined": minion}}


@refusing
def begin_drain(minion: str) -> dict[str, Any]:
    """It is given no more requests; those concerned have been told."""
    house = Tree.of(__opts__)
    lock.take(house, f"leave of {minion}", lock.HOLD_SECONDS)
    return _told(house, minion, "draining")


@refusing
def emptied(minion: str) -> dict[str, Any]:
    """Wait until what it was asked is answered, as long as that may take; then it is cut."""
    house = _mine("leave")
    ports = [row.port for row in workers.of(_map(house), house.placement(_map(house))).of(minion)]
    done = Machines(__opts__).call(
        minion, "synapse_worker.emptied", ports, DRAIN_SECONDS, timeout=DRAIN_SECONDS + 15
    )
    words = f"empty after {done['seconds']} s"
    if done["left"]:
        words = f"{done['left']} connections are left after {done['seconds']} s and are cut"
        log.warning("leave of %s: %s", minion, words)
    return {"said": words, "changes": {}}


@refusing
def gone(minion: str) -> dict[str, Any]:
    """It is gone; its key too, if that was asked for."""
    house = _mine("leave")
    # First: a run that died in between must not leave a key behind that can join again.
    _key_goes(house, minion)
    return _moved(minion, "gone")


@refusing
def lose(minion: str) -> dict[str, Any]:
    """It does not answer any more: the plan goes on without it, those concerned have been told."""
    house, machines = Tree.of(__opts__), Machines(__opts__)
    lock.take(house, f"loss of {minion}", lock.HOLD_SECONDS)
    _nobody_is_told(house, "loss")
    member = registry.known(_members(house), minion)
    if member.state == "ready" and members.healthy(house, machines, 1).get(minion, True):
        what = "answers at the front after all, or nobody can say"
        raise Refused("loss", [Problem(minion, what, "nothing is done; see salt-run worker.list")])
    # Of one that is ready the front has said it; for the others it is Salt alone that does.
    brief = members.PING_SECONDS, members.PATIENCE_SECONDS
    seconds = brief if member.state == "ready" else (LAST_SECONDS, PATIENCE_SECONDS)
    here = machines.answering([minion], *seconds)
    if member.state in ("joining", "draining") and here:
        what = "answers after all"
        raise Refused("loss", [Problem(minion, what, "it leaves in peace: salt-run worker.list")])
    words = ""
    if here:
        # It answers Salt and not the front: it must not go on with what others do from now on.
        services = telling.services(_map(house), house.placement(_map(house)), minion)
        _, wrong = machines.attempt(minion, "synapse_worker.stop", services)
        if wrong:
            raise Refused("loss", wrong)
        words = f"; {', '.join(services)} stopped there"
    _key_goes(house, minion)
    done = _told(house, minion, "gone")
    return {**done, "said": f"{done['said']}{words}"}


@refusing
def tell(minion: str) -> dict[str, Any]:
    """Others are told to the end of what they were being told of, whoever died meanwhile.

    :param minion: the member of whom; or, when nobody is being told of anything, a machine that
        could not be told before.
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    lock.take(house, f"telling of {minion}", lock.HOLD_SECONDS)
    rows = bank.read(house.store, telling.TOLD)
    if not rows:
        return _told_later(house, machines, minion)
    concerned = telling.left(_map(house), house.placement(_map(house)), rows).machines
    here = _answering(machines, concerned | set(rows))
    changes = {}
    for name, member in _members(house).items():
        if name in rows and name not in here and member.state == "joining":
            # It was coming, and is away: when it is back it comes again.
            changes.update(_moved(name, "gone")["changes"])
    cmap, placement = _map(house), house.placement(_map(house))
    away = concerned - here
    if placement.synapse in away:
        # It may run with what it was told before, and then two processes write the same stream.
        what = "the main process must be told, and its machine does not answer"
        do = f"bring its salt-minion back; the door of {placement.front} stays shut until then"
        raise Refused("telling", [Problem(placement.synapse, what, do)])
    ledger = Ledger(house, minion)
    ledger.late(telling.left(cmap, placement, rows).of(away))
    left = telling.left(cmap, placement, rows, away)
    said = telling_run.finish(machines, _way(cmap, placement, left), left, ledger)
    return {"said": f"{_missing(away)}{said}", "changes": changes or {"told": sorted(rows)}}


def _told(
    house: Tree, minion: str, state: registry.State, phase: str = ""
) -> dict[str, Any]:
    """The registry says a member's state, and those who must know of it have been told.

    :param phase: of a join, over when the registry says it.
    :raises Refused: somebody who must know does not answer; nothing was changed.
    """
    _nobody_is_told(house, state)
    cmap = _map(house)
    placement = house.placement(cmap)
    told = telling.plan(cmap, placement, minion, state)
    if not told.machines:
        return _moved(minion, state, phase)
    machines, ledger, lost = Machines(__opts__), Ledger(house, minion), state == "gone"
    wanted = {placement.front, *told.machines}
    away = wanted - _answering(machines, wanted)
    if away and (not lost or placement.front in away):
        what = f"must be told that {minion} is {state}, and does not answer"
        do = "bring its salt-minion back; nothing was changed"
        raise Refused(state, [Problem(name, what, do) for name in sorted(away)])
    # Nobody waits for those: what was lost others do in any case, and they hear of it later.
    ledger.late(told.of(away))
    told = told.without(away)
    done: dict[str, Any] = {}
    if not told.machines:
        done = _moved(minion, state, phase)
        return {**done, "said": f"{_missing(away)}{done['said']}"}
    said = telling_run.conduct(
        machines,
        _way(cmap, placement, told, 0 if lost else plan.announce_seconds(cmap)),
        told,
        ledger,
        lambda: done.update(_registered(minion, state)),
    )
    _noted(house, minion, state, phase)
    return {**done, "said": f"{_missing(away)}{done['said']}; {said}"}


def _told_later(house: Tree, machines: Machines, machine: str) -> dict[str, Any]:
    """A machine that was away when others were told knows how things stand now."""
    cmap = _map(house)
    placement = house.placement(cmap)
    late = telling.late(cmap, placement, bank.read(house.store, telling.LATE))
    ledger = Ledger(house, machine)
    if machine not in late:
        ledger.heard([machine])
        return {"said": f"{machine} need not be told of anything", "changes": {}}
    services = tuple(late[machine]["services"])
    if services:
        told = telling.Telling({machine: services}, ((machine,),))
        way = _way(cmap, placement, told)
        try:
            said = telling_run.conduct(machines, way, told, ledger, lambda: None)
        except telling_run.Untouched:
            ledger.late({machine: services}, failed=True)
            raise
        return {"said": said, "changes": {"told": [machine]}}
    try:
        machines.call(machine, "state.highstate", queue=True)
    except MachineError:
        ledger.late({machine: ()}, failed=True)
        raise
    ledger.heard([machine])
    return {"said": f"{machine} has been told", "changes": {"told": [machine]}}


def _answering(machines: Machines, wanted: Collection[str]) -> set[str]:
    return machines.answering(sorted(wanted), PING_SECONDS, PATIENCE_SECONDS) if wanted else set()


def _missing(away: Collection[str]) -> str:
    return f"{', '.join(sorted(away))} cannot be told yet; " if away else ""


def _way(
    cmap: clustermap.Map, placement: Placement, told: telling.Telling, announce: int = 0
) -> Way:
    return Way(
        front=placement.front,
        target=plan.door_target(cmap, placement, placement.front),
        main=placement.synapse,
        ports={
            machine: telling.ports(cmap, placement, machine, services)
            for machine, services in told.stop.items()
        },
        announce=announce,
    )


def _nobody_is_told(house: Tree, what: str, of: Collection[str] = ()) -> None:
    """Refuse what must wait until others have been told of members.

    :param of: these members; of any when it is empty.
    """
    rows = set(bank.read(house.store, telling.TOLD))
    if wrong := parts.telling_problems(rows & set(of) if of else rows):
        raise Refused(what, wrong)


def _forgiven(house: Tree, minion: str) -> None:
    with house.changing(joins.RECORD) as rows:
        if minion in rows:
            rows[minion] = joins.anew(rows[minion])


def _key_goes(house: Tree, minion: str) -> None:
    """Its key is removed and its invite used up, if the operator asked for that."""
    if bank.read(house.store, admission.OUT).get(minion, {}).get("remove_key"):
        with house.changing(invites.RECORD) as rows:
            rows.update(invites.rows(invites.spent(invites.of(rows), minion)))
        Keys(__opts__).remove(minion)


def _moved(minion: str, state: registry.State, phase: str = "") -> dict[str, Any]:
    done = _registered(minion, state)
    _noted(_mine(state), minion, state, phase)
    return done


def _registered(minion: str, state: registry.State) -> dict[str, Any]:
    """The registry says it, and nothing else is done: what fails here has changed nothing."""
    house = _mine(state)
    with house.changing(registry.RECORD) as rows:
        found = registry.of(rows)
        before = registry.known(found, minion).state
        rows.update(registry.rows(registry.moved(found, minion, state, admission.now())))
    changes = {} if before == state else {minion: {"old": before, "new": state}}
    return {"said": f"{minion} is {state}", "changes": changes}


def _noted(house: Tree, minion: str, state: registry.State, phase: str) -> None:
    if phase:
        _stamp(house, minion, phase)
    if state == "gone":
        Ledger(house, minion).heard([minion])


def _mine(what: str) -> Tree:
    """The tree, as long as the cluster's lock is this process's."""
    house = Tree.of(__opts__)
    lock.demand(house.store, what)
    return house


def _map(house: Tree) -> clustermap.Map:
    cmap = house.map()
    if cmap is None:
        raise Refused("worker", [Problem(str(house.map_path), "is not there", "write it")])
    return cmap


def _members(house: Tree) -> dict[str, registry.Member]:
    return registry.of(bank.read(house.store, registry.RECORD))


def _urls(house: Tree, minion: str) -> list[str]:
    found = members.urls(house).get(minion, [])
    if not found:
        what = "has no process in the plan"
        see = "its kind must be one of the worker table, and a machine must have the role redis"
        raise Refused("join", [Problem(minion, what, see)])
    return found


def _row(house: Tree, minion: str) -> dict[str, Any]:
    row: dict[str, Any] = bank.read(house.store, joins.RECORD).get(minion, {})
    return row


def _record(house: Tree, minion: str, row: dict[str, Any]) -> None:
    with house.changing(joins.RECORD) as rows:
        rows[minion] = row


def _stamp(house: Tree, minion: str, phase: str) -> None:
    with house.changing(joins.RECORD) as rows:
        rows[minion] = joins.stamped(rows.get(minion, {}), phase, time.time())
