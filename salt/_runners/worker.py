"""Workers' machines: who there is, who is to go, and the steps of coming and going."""

from __future__ import annotations

import logging
import time
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
    movement,
    passes,
    registry,
    serving,
    slices,
    teller,
    telling,
    workers,
)
from saltworks.errors import Problem, Refused
from saltworks.keys import Keys
from saltworks.loaders import refusing
from saltworks.media_report import RUNBOOK
from saltworks.minions import QUEUE, ROLE_SLS, MachineError, Machines, bring_modules
from saltworks.parts import media
from saltworks.plan import MAIN_REPLICATION_PORT, MEDIA_DIR, USER, endpoint
from saltworks.tree import Tree

log = logging.getLogger(__name__)

__opts__: dict[str, Any]

__func_alias__ = {"list_": "list"}

#: Bounds of what is waited for, in seconds.
SYNC_SECONDS, HEALTHY_SECONDS, CATCH_UP_SECONDS, SERVE_SECONDS = 120, 60, 60, 30

#: A state run that brings Synapse's release, and one that has little to do.
CONVERGE_SECONDS, APPLY_SECONDS = 900, 300

#: How long a media worker's cache may take to be emptied before others' turns come first: each file
#: is compared with its object. The next try goes on with what is left.
EMPTY_SECONDS = 600

#: What a question costs at most beyond the time for which the machine itself waits.
MORE_SECONDS = 15

#: How long a machine may take to answer Salt before it is given up, in seconds; and how long a
#: process to answer that its service manager may be starting anew.
LAST_SECONDS, RESTART_SECONDS = 10, 20

#: A drain waits longer than the longest poll that Synapse lets a client have in practice.
DRAIN_SECONDS = 90

#: How many answers in a row make a process a healthy one, and seconds between them.
TIMES, HEALTHY_EVERY = 3, 0.15


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
    registry.known(movement.members_of(house), minion)
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
    """Take a member that is gone off the list, for good: its key goes as well.

    :raises saltworks.errors.Refused: it is no member, or not gone, or others are still to be told.

    CLI Example:

    .. code-block:: bash

        salt-run worker.forget sync-2
    """
    house = Tree.of(__opts__)
    teller.refuse_while_told(house, "forget", {minion})
    registry.forgotten(movement.members_of(house), minion)
    # First: with its key, and by a standing invite, it would come again.
    _key_removed(house, minion)
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
    member = registry.known(movement.members_of(house), minion)
    if member.state == "gone":
        admission.settle(house, keys, minion, member.key)
        member = movement.members_of(house)[minion]
    if member.state == "draining":
        what = f"worker.undrain {minion}, when it is gone"
        raise Refused("join", [Problem(minion, "is on its way out", f"salt-run {what}")])
    admitted = members.admitted_at(member)
    _record(house, minion, joins.begun(_row(house, minion), member, admitted, time.time()))
    return {"said": f"{minion} joins for the {member.generation}. time", "changes": {}}


@refusing
def sync(minion: str) -> dict[str, Any]:
    """The machine, and the front, get the project's modules; it is asked for its address."""
    house, machines = movement.mine(Tree.of(__opts__), "join"), Machines(__opts__)
    cmap = movement.map_of(house)
    both = [minion, house.placement(cmap).front]
    if wrong := bring_modules(machines, both, bound=SYNC_SECONDS):
        raise MachineError("; ".join(wrong[name] for name in sorted(wrong)))
    told = [
        address
        for function in ("network.ip_addrs", "network.ip_addrs6")
        for address in machines.call(minion, function, bound=MORE_SECONDS)
    ]
    address = membership.placed(cmap, minion, told)
    with house.changing(registry.RECORD) as rows:
        rows.update(registry.rows(registry.located(registry.of(rows), minion, address)))
    movement.stamp(house, minion, "synced")
    return {"said": f"{minion} is at {address}", "changes": {}}


@refusing
def converge(minion: str) -> dict[str, Any]:
    """The machine has what the plan says of it."""
    movement.mine(Tree.of(__opts__), "join")
    return _applied(minion, ROLE_SLS, bound=CONVERGE_SECONDS)


@refusing
def front(minion: str) -> dict[str, Any]:
    """The front has what the plan says of it, since that of a member has changed."""
    house = movement.mine(Tree.of(__opts__), f"front for {minion}")
    machine, machines = house.placement(movement.map_of(house)).front, Machines(__opts__)
    member = registry.known(movement.members_of(house), minion)
    coming = member.state == "ready" and not joins.finished(_row(house, minion), member)
    if not coming:
        # A join has brought them.
        bring_modules(machines, [machine], bound=SYNC_SECONDS)
    # Clients are told that connections end while the state run renders, instead of after that. It
    # withdraws the notice.
    machines.attempt(machine, "nginx_config.notice", 0, bound=MORE_SECONDS)
    done = _applied(machine, ROLE_SLS, bound=APPLY_SECONDS)
    if coming:
        movement.stamp(house, minion, "routed")
    return done


@refusing
def retire(minion: str) -> dict[str, Any]:
    """Nothing of a worker runs on the machine any more.

    :raises MachineError: of a file of its media cache it is not proven that the store has it.
    """
    house, machines = movement.mine(Tree.of(__opts__), "leave"), Machines(__opts__)
    bring_modules(machines, [minion], bound=SYNC_SECONDS)
    placement = house.placement(movement.map_of(house))
    words = ""
    if minion in media.caches(placement):
        # Its processes first: what is in the cache then is all.
        services = telling.services(placement, minion)
        machines.call(minion, "synapse_worker.stop", services, bound=APPLY_SECONDS)
        asked = "media_store.leave", USER, MEDIA_DIR, EMPTY_SECONDS
        try:
            done = machines.call(minion, *asked, bound=EMPTY_SECONDS + MORE_SECONDS)
        except MachineError as error:
            # First, because of many names the end may be cut off.
            do = f"see 'On several machines' in {RUNBOOK}, then salt-run reconcile.run"
            raise MachineError(f"its cache is not empty, {do}: {error}") from error
        words = f"; the store has all {done['files']} files of its cache"
    applied = _applied(minion, f"{ROLE_SLS}.worker.absent", bound=APPLY_SECONDS)
    return {**applied, "said": f"{applied['said']}{words}"}


@refusing
def healthy(minion: str) -> dict[str, Any]:
    """Wait until each of its processes has answered several times in a row."""
    house = movement.mine(Tree.of(__opts__), "join")
    movement.stamp(house, minion, "highstate")
    seconds = Machines(__opts__).call(
        minion,
        "synapse_worker.healthy",
        _urls(house, minion),
        TIMES,
        HEALTHY_EVERY,
        HEALTHY_SECONDS,
        bound=HEALTHY_SECONDS + MORE_SECONDS,
    )
    movement.stamp(house, minion, "healthy")
    return {"said": f"its processes answer, after {seconds} s", "changes": {}}


@refusing
def caught_up(minion: str) -> dict[str, Any]:
    """Wait until its processes are as far as the main process."""
    house = movement.mine(Tree.of(__opts__), "join")
    cmap = movement.map_of(house)
    main = clustermap.address(cmap, house.placement(cmap).synapse)
    done = Machines(__opts__).call(
        minion,
        "synapse_worker.caught_up",
        _urls(house, minion),
        f"http://{endpoint(main, MAIN_REPLICATION_PORT)}",
        CATCH_UP_SECONDS,
        bound=CATCH_UP_SECONDS + MORE_SECONDS,
    )
    movement.stamp(house, minion, "caught-up")
    return {"said": f"{done['streams']} streams, after {done['seconds']} s", "changes": {}}


@refusing
def register(minion: str) -> dict[str, Any]:
    """It may be given requests; those concerned have been told."""
    house = movement.mine(Tree.of(__opts__), "join")
    machines, placement = Machines(__opts__), house.placement(movement.map_of(house))
    answers = machines.call(
        placement.front, "synapse_worker.answering", _urls(house, minion), bound=SERVE_SECONDS
    )
    if silent := sorted(url for url, well in answers.items() if not well):
        what = f"does not answer {placement.front} at {', '.join(silent)}"
        see = "it answers on its own machine: see the firewall and the network between the two"
        raise Refused("join", [Problem(minion, what, see)])
    return teller.told(house, machines, minion, "ready", "registered")


@refusing
def served(minion: str) -> dict[str, Any]:
    """Wait until each of its processes has answered a request through the front."""
    house = movement.mine(Tree.of(__opts__), "join")
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    found = workers.of(placement).of(minion)
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
        SERVE_SECONDS,
        bound=SERVE_SECONDS + MORE_SECONDS,
    )
    movement.stamp(house, minion, "served")
    said = "; ".join(f"{name}: {row['request']} {row['status']}" for name, row in seen.items())
    return {"said": f"seen in the front's log: {said}", "changes": {}}


@refusing
def finish(minion: str) -> dict[str, Any]:
    """Its join has come to its end."""
    house = movement.mine(Tree.of(__opts__), "join")
    _record(house, minion, joins.ended(_row(house, minion), [], time.time()))
    total = joins.report(_row(house, minion))["total_seconds"]
    return {"said": f"joined in {total} s", "changes": {"joined": minion}}


@refusing
def begin_drain(minion: str) -> dict[str, Any]:
    """It is given no more requests; those concerned have been told."""
    house = Tree.of(__opts__)
    lock.take(house, f"leave of {minion}", lock.HOLD_SECONDS)
    return teller.told(house, Machines(__opts__), minion, "draining")


@refusing
def emptied(minion: str) -> dict[str, Any]:
    """Wait until what it was asked is answered, as long as that may take; then it is cut."""
    house = movement.mine(Tree.of(__opts__), "leave")
    cmap = movement.map_of(house)
    ports = [row.port for row in workers.of(house.placement(cmap)).of(minion)]
    done = Machines(__opts__).call(
        minion, "synapse_worker.emptied", ports, DRAIN_SECONDS, bound=DRAIN_SECONDS + MORE_SECONDS
    )
    words = f"empty after {done['seconds']} s"
    if done["left"]:
        words = f"{done['left']} connections are left after {done['seconds']} s and are cut"
        log.warning("leave of %s: %s", minion, words)
    return {"said": words, "changes": {}}


@refusing
def gone(minion: str) -> dict[str, Any]:
    """It is gone; its key too, if that was asked for."""
    house = movement.mine(Tree.of(__opts__), "leave")
    # First: a run that died in between must not leave a key behind that can join again.
    _key_goes(house, minion)
    return movement.moved(house, minion, "gone")


@refusing
def lose(minion: str) -> dict[str, Any]:
    """It does not answer any more: the plan goes on without it, those concerned have been told."""
    house, machines = Tree.of(__opts__), Machines(__opts__)
    lock.take(house, f"loss of {minion}", lock.HOLD_SECONDS)
    teller.refuse_while_told(house, "loss")
    member = registry.known(movement.members_of(house), minion)
    if member.state == "ready" and members.healthy(house, machines, 1).get(minion, True):
        what = "answers at the front after all, or nobody can say"
        raise Refused("loss", [Problem(minion, what, "nothing is done; see salt-run worker.list")])
    # Of one that is ready the front has said it; for the others it is Salt alone that does.
    brief = members.PING_SECONDS, members.PATIENCE_SECONDS
    seconds = brief if member.state == "ready" else (LAST_SECONDS, teller.PATIENCE_SECONDS)
    here = machines.answering([minion], *seconds)
    if member.state in ("joining", "draining") and here:
        what = "answers after all"
        raise Refused("loss", [Problem(minion, what, "it leaves in peace: salt-run worker.list")])
    words = ""
    if here:
        if member.state == "ready" and _restarted(house, machines, minion):
            what = "answers again"
            raise Refused("loss", [Problem(minion, what, "nothing is done: its services restart")])
        # It answers Salt and not the front: it must not go on with what others do from now on.
        cmap = movement.map_of(house)
        services = telling.services(house.placement(cmap), minion)
        _, wrong = machines.attempt(minion, "synapse_worker.stop", services)
        if wrong:
            raise Refused("loss", wrong)
        words = f"; {', '.join(services)} stopped there"
    _key_goes(house, minion)
    done = teller.told(house, machines, minion, "gone")
    return {**done, "said": f"{done['said']}{words}"}


@refusing
def tell(minion: str) -> dict[str, Any]:
    """Others are told to the end of what they were being told of, whoever died meanwhile.

    :param minion: the member of whom; or, when nobody is being told of anything, a machine that
        could not be told before.
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    lock.take(house, f"telling of {minion}", lock.HOLD_SECONDS)
    if bank.read(house.store, telling.TOLD):
        return teller.finished(house, machines, minion)
    return teller.told_later(house, machines, minion)


def _forgiven(house: Tree, minion: str) -> None:
    with house.changing(joins.RECORD) as rows:
        if minion in rows:
            rows[minion] = joins.anew(rows[minion])


def _key_goes(house: Tree, minion: str) -> None:
    """Its key is removed and its invite used up, if the operator asked for that."""
    if bank.read(house.store, admission.OUT).get(minion, {}).get("remove_key"):
        _key_removed(house, minion)


def _key_removed(house: Tree, minion: str) -> None:
    with house.changing(invites.RECORD) as rows:
        rows.update(invites.rows(invites.spent(invites.of(rows), minion)))
    Keys(__opts__).remove(minion)


def _restarted(house: Tree, machines: Machines, minion: str) -> bool:
    """Whether a machine's processes were only being started anew, and the front has them again."""
    urls = members.urls(house).get(minion, [])
    words = urls, 1, HEALTHY_EVERY, RESTART_SECONDS
    bound = RESTART_SECONDS + MORE_SECONDS
    _, wrong = machines.attempt(minion, "synapse_worker.healthy", *words, bound=bound)
    return not wrong and members.healthy(house, machines, 1).get(minion, False)


def _applied(machine: str, sls: str, bound: float) -> dict[str, Any]:
    """A state run on a machine, which waits for those before it; for a step's answer.

    :raises MachineError: it failed, or took too long.
    """
    states = Machines(__opts__).call(machine, "state.sls", sls, bound=bound, queue=QUEUE)
    changed = {name: row["changes"] for name, row in states.items() if row.get("changes")}
    changes = {machine: changed} if changed else {}
    return {"said": f"{machine}: {len(states)} states, {len(changed)} changed", "changes": changes}


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
