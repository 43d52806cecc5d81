"""The database's machines: who is the primary, and the steps of their coming and going."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saltworks import (
    bank,
    clustermap,
    joins,
    lock,
    membership,
    movement,
    registry,
    telling_run,
    workers,
)
from saltworks.admission import now
from saltworks.errors import Problem, Refused
from saltworks.keys import Keys
from saltworks.loaders import refusing
from saltworks.minions import QUEUE, ROLE_SLS, MachineError, Machines, bring_modules, or_error
from saltworks.parts.database import cluster, health
from saltworks.plan import Placement
from saltworks.tree import Tree

__opts__: dict[str, Any]

#: How long etcd may take to elect a leader, Patroni to have one or a standby to follow it, and a
#: question, in seconds.
QUORUM_SECONDS, LEAD_SECONDS, ASK_SECONDS = 60, 60, 15

#: After so many seconds a machine of the cluster is not waited for, when others have answered.
ANSWER_SECONDS = 5

#: A state run that changes little.
APPLY_SECONDS = 300

#: How long the old primary may take to give up, and another to take over, in seconds.
SWITCHOVER_SECONDS = 60

#: What Synapse's machines need to find the database: names, and the services that list them.
FINDS = "base,synapse.databases"


@refusing
def status() -> dict[str, Any]:
    """Who is the primary, who follows and how far behind, slots, and etcd.

    :returns: what ``patroni.status`` says on the primary, or on ``asked`` where that does not
        answer: ``leader``, ``members`` (name to ``role``, ``state``, ``timeline``, ``lag`` in
        bytes, ``lag_seconds``), ``sync``, ``durability``, ``here`` (slots, senders, disk);
        ``etcd`` (machine to ``leads``, ``follows``, or what is wrong); and ``problems``, all that
        is wrong, a line each with the next step.
    :raises MachineError: no machine of the cluster answers.

    CLI Example:

    .. code-block:: bash

        salt-run database.status
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    cmap = movement.map_of(house)
    names = cluster.running(_clustered(house, cmap))
    answers = _answers(machines, names)
    asked, found = _told_most(answers)
    watchers = machines.calls(
        cluster.watchers(cmap), "etcd_member.status", timeout=ANSWER_SECONDS, bound=ASK_SECONDS
    )
    etcd = {name: cluster.watcher(name, or_error(row)) for name, row in watchers.items()}
    rows = {name: or_error(row) for name, row in answers.items()}
    wrong = health.problems(names, rows, found, etcd)
    return {**found, "asked": asked, "etcd": etcd, "problems": [str(row) for row in wrong]}


@refusing
def switchover(to: str = "") -> str:
    """Another machine becomes the primary, in peace: nothing acknowledged is lost.

    :param to: which; empty: the standby that is furthest.
    :raises saltworks.errors.Refused: there is none that could.

    CLI Example:

    .. code-block:: bash

        salt-run database.switchover db-2
    """
    machines, placement = _by_hand("switchover")
    if to and to not in cluster.serving(placement):
        there = ", ".join(cluster.serving(placement))
        raise Refused("switchover", [Problem(to, "is no database in service", f"one of {there}")])
    done = _switched(machines, placement, to)
    return f"{done['leader']} is the primary, after {done['seconds']} s"


@refusing
def reinit(minion: str) -> str:
    """A standby throws its copy away and makes a new one.

    :raises saltworks.errors.Refused: it is the primary, or none of the cluster.

    CLI Example:

    .. code-block:: bash

        salt-run database.reinit db-2
    """
    machines, placement = _by_hand("reinit")
    if minion not in cluster.running(placement):
        there = ", ".join(cluster.running(placement))
        raise Refused("reinit", [Problem(minion, "is no database", f"one of {there}")])
    asked, found = _status(machines, placement)
    if cluster.leader(found) == minion:
        do = "salt-run database.switchover first"
        raise Refused("reinit", [Problem(minion, "is the primary", do)])
    # The primary asks it to: its own API may be what is wrong.
    machines.call(asked, "patroni.reinit", minion, bound=APPLY_SECONDS)
    return f"{minion} makes a new copy: salt-run database.status shows when it streams"


@refusing
def watched() -> dict[str, Any]:
    """Wait until all machines of etcd serve and agree on a leader."""
    house, machines = Tree.of(__opts__), Machines(__opts__)
    names = cluster.watchers(movement.map_of(house))

    def agreed() -> tuple[str, str]:
        rows = machines.calls(names, "etcd_member.status", bound=2 * ASK_SECONDS)
        found = {name: or_error(row) for name, row in rows.items()}
        leaders = {str(row.get("leader")) for row in found.values() if row.get("healthy")}
        if len(leaders) == 1 and all(row.get("healthy") for row in found.values()):
            return leaders.pop(), ""
        return "", f"etcd says {found}: see journalctl -u etcd on its machines"

    said = f"{', '.join(names)}: {_waited(agreed, QUORUM_SECONDS, 'etcd to agree')} leads"
    return {"said": said, "changes": {}}


@refusing
def found(minion: str) -> dict[str, Any]:
    """The machine that M3 has made is the first member of the cluster; the plan follows."""
    house = Tree.of(__opts__)
    cmap = movement.map_of(house)
    if house.placement(cmap).clustered:
        return {"said": "the cluster is recorded already", "changes": {}}
    lock.demand(house.store, "the first member")
    row = membership.declared(cmap, minion)
    key = Keys(__opts__).fingerprints([minion]).get(minion, "")
    if row is None or not key:
        what = "is no database of the map whose key is accepted"
        raise Refused("the first member", [Problem(minion, what, "salt-key -L; declare it")])
    with house.changing(registry.RECORD) as rows:
        joined = registry.admitted(registry.of(rows), minion, row, key, now())
        rows.update(registry.rows(registry.moved(joined, minion, "ready", now())))
        member = registry.of(rows)[minion]
    at = time.time()
    with house.changing(joins.RECORD) as rows:
        rows[minion] = joins.ended(joins.begun({}, member, at, at), [], at)
    bank.update(house.store, "placement", clustered=True)
    return {"said": f"{minion} is the first member", "changes": {"clustered": True}}


@refusing
def led(minion: str) -> dict[str, Any]:
    """Wait until Patroni has a primary.

    :param minion: the first machine, for the report.
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    placement = _clustered(house, movement.map_of(house))

    def has() -> tuple[str, str]:
        asked, status = _status(machines, placement)
        leader = cluster.leader(status)
        return leader, f"{asked} says {status}: see journalctl -u patroni on {minion}"

    leader = _waited(has, LEAD_SECONDS, "Patroni to have a primary")
    return {"said": f"{leader} is the primary", "changes": {}}


@refusing
def admit(minion: str) -> dict[str, Any]:
    """The cluster's other machines, etcd's and the store let a new one in; the primary has to.

    :raises MachineError: the primary's state run failed.
    """
    house, machines = movement.mine(Tree.of(__opts__), "join"), Machines(__opts__)
    cmap = movement.map_of(house)
    placement = house.placement(cmap)
    gates = cluster.gates(cmap, placement)
    others = [*gates, *(name for name in cluster.serving(placement) if name != minion)]
    first = cluster.leader(_status(machines, placement)[1])
    answers = machines.calls(others, "state.sls", ROLE_SLS, bound=APPLY_SECONDS, queue=QUEUE)
    if first not in others:
        raise MachineError("join: there is no primary to be copied")
    if isinstance(failed := answers[first], MachineError):
        raise MachineError(f"join: {failed}")
    return _told_later(house, minion, answers, "admit it")


@refusing
def stream(minion: str) -> dict[str, Any]:
    """Wait until a standby is a whole copy, and gets what is written as it is written.

    :raises MachineError: the copy is not whole yet; it goes on, and the join is tried again.
    """
    house = movement.mine(Tree.of(__opts__), "join")
    movement.stamp(house, minion, "highstate")
    row = Machines(__opts__).call(
        minion, "patroni.streaming", LEAD_SECONDS, bound=LEAD_SECONDS + ASK_SECONDS
    )
    movement.stamp(house, minion, "caught-up")
    return {"said": f"streams, after {row['seconds']} s", "changes": {}}


@refusing
def register(minion: str) -> dict[str, Any]:
    """The registry says that it may be read from, and may lead; Synapse's machines know it."""
    house = movement.mine(Tree.of(__opts__), "join")
    done = movement.moved(house, minion, "ready", "registered")
    told = _told(house, minion)
    # Only now: a failover must not lead to where Synapse does not look.
    _applied(Machines(__opts__), [minion], ROLE_SLS, "join")
    return {**done, "said": f"{done['said']}; {told}"}


@refusing
def hand_over(minion: str) -> dict[str, Any]:
    """If it is the primary, another one takes over; from here on the lock is this process's.

    :raises saltworks.errors.Refused: there is no other that could, or too few would be left.
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    lock.take(house, f"leave of {minion}", lock.HOLD_SECONDS)
    placement = _clustered(house, movement.map_of(house))
    _, found = _status(machines, placement)
    if wrong := cluster.leave_problems(placement, minion, found):
        raise Refused("leave", wrong)
    if cluster.leader(found) != minion:
        return {"said": f"{cluster.leader(found)} is the primary", "changes": {}}
    done = _switched(machines, placement, "")
    said = f"{done['leader']} took over, after {done['seconds']} s"
    return {"said": said, "changes": {"leader": {"old": minion, "new": done["leader"]}}}


@refusing
def begin_drain(minion: str) -> dict[str, Any]:
    """It is read from no more, and may not lead; Synapse's machines know it."""
    house = movement.mine(Tree.of(__opts__), "leave")
    done = movement.moved(house, minion, "draining")
    _applied(Machines(__opts__), [minion], ROLE_SLS, "leave")
    return {**done, "said": f"{done['said']}; {_told(house, minion)}"}


@refusing
def retire(minion: str) -> dict[str, Any]:
    """PostgreSQL and Patroni do not run there any more; its data stays for a person to delete."""
    movement.mine(Tree.of(__opts__), "leave")
    machines = Machines(__opts__)
    bring_modules(machines, [minion], bound=APPLY_SECONDS)
    changed = _applied(machines, [minion], f"{ROLE_SLS}.database.absent", "leave")
    return {"said": f"{minion} is no database any more", "changes": changed}


@refusing
def lose(minion: str) -> dict[str, Any]:
    """A machine that was coming or going is away: the plan goes on without it."""
    house = Tree.of(__opts__)
    lock.take(house, f"loss of {minion}", lock.HOLD_SECONDS)
    if Machines(__opts__).answering([minion], ASK_SECONDS):
        do = "it leaves in peace: salt-run worker.list"
        raise Refused("loss", [Problem(minion, "answers after all", do)])
    done = movement.moved(house, minion, "gone")
    return {**done, "said": f"{done['said']}; {_told(house, minion)}"}


@refusing
def shut_out(minion: str) -> dict[str, Any]:
    """Neither etcd, the store nor the cluster's other machines let one in that is gone.

    It may boot again with all that it had.
    """
    house, machines = movement.mine(Tree.of(__opts__), "leave"), Machines(__opts__)
    cmap = movement.map_of(house)
    others = cluster.neighbours(cmap, house.placement(cmap))
    answers = machines.calls(others, "state.sls", ROLE_SLS, bound=APPLY_SECONDS, queue=QUEUE)
    return _told_later(house, minion, answers, f"let {minion} in no more")


@refusing
def alone(minion: str) -> dict[str, Any]:
    """Refuse the way back unless a machine is the cluster's last and its primary.

    :param minion: the machine that M3 has made.
    """
    house, machines = movement.mine(Tree.of(__opts__), "way back"), Machines(__opts__)
    placement = house.placement(movement.map_of(house))
    if not placement.clustered:
        return {"said": "there is no cluster any more", "changes": {}}
    if wrong := cluster.return_problems(placement):
        raise Refused("way back", wrong)
    try:
        _, found = _status(machines, placement)
    except MachineError:
        # A run that died has taken Patroni away, or has not brought it: what follows asks etcd.
        return {"said": f"{minion} is the last machine, and has no Patroni", "changes": {}}
    if cluster.leader(found) != minion:
        what = f"is not the primary, {cluster.leader(found) or 'nobody'} is"
        raise Refused("way back", [Problem(minion, what, f"salt-run database.switchover {minion}")])

    def forgotten() -> tuple[str, str]:
        left = sorted({*_status(machines, placement)[1]["members"]} - {minion})
        return "" if left else minion, f"Patroni still knows {', '.join(left)}"

    # Of one that died Patroni knows until its key has run out.
    _waited(forgotten, LEAD_SECONDS, f"{minion} to be alone in Patroni's cluster")
    return {"said": f"{minion} is the last machine, and the primary", "changes": {}}


@refusing
def dissolve(minion: str) -> dict[str, Any]:
    """The plan has one database again, and no etcd."""
    house = movement.mine(Tree.of(__opts__), "way back")
    with house.changing(registry.RECORD) as rows:
        rows.pop(minion, None)
    with house.changing(joins.RECORD) as rows:
        rows.pop(minion, None)
    bank.update(house.store, "placement", clustered=False, dcs=False)
    return {"said": f"{minion} is the one database", "changes": {"clustered": False}}


def _by_hand(what: str) -> tuple[Machines, Placement]:
    """The cluster, for what an operator does while nobody else works on it.

    :param what: for the error.
    :raises Refused: there is none, or somebody does.
    """
    house = Tree.of(__opts__)
    placement = _clustered(house, movement.map_of(house))
    lock.refuse_others(house.store, what)
    return Machines(__opts__), placement


def _clustered(house: Tree, cmap: clustermap.Map) -> Placement:
    """The placement of a cluster.

    :raises Refused: there is none.
    """
    placement = house.placement(cmap)
    if not placement.clustered:
        do = "run salt-run state.orchestrate orch.m4.database first"
        raise Refused("database", [Problem("the database", "is no cluster", do)])
    return placement


def _status(machines: Machines, placement: Placement) -> tuple[str, dict[str, Any]]:
    """What the cluster says of itself, and who said it: the primary, else another machine.

    :raises MachineError: nobody could.
    """
    return _told_most(_answers(machines, cluster.running(placement)))


def _answers(machines: Machines, names: Sequence[str]) -> dict[str, Any]:
    return machines.calls(names, "patroni.status", timeout=ANSWER_SECONDS, bound=ASK_SECONDS)


def _told_most(answers: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """See :func:`_status`."""
    rows = {name: row for name, row in answers.items() if not isinstance(row, MachineError)}
    if not rows:
        wrong = "; ".join(map(str, answers.values()))
        raise MachineError(f"no machine of the database's cluster can say how it is: {wrong}")
    # Who sees etcd knows the others; of those the primary how far they are.
    name = min(rows, key=lambda each: (
        bool(rows[each].get("dcs")), cluster.leader(rows[each]) != each, each))
    return name, rows[name]


def _switched(machines: Machines, placement: Placement, to: str) -> dict[str, Any]:
    asked, found = _status(machines, placement)
    leader = cluster.leader(found)
    if not leader:
        do = "salt-run database.status; see journalctl -u patroni on its machines"
        raise Refused("switchover", [Problem("the database", "has no primary", do)])
    if leader == to:
        return {"leader": to, "seconds": 0.0}
    done: dict[str, Any] = machines.call(
        asked, "patroni.switchover", to, SWITCHOVER_SECONDS, bound=SWITCHOVER_SECONDS + ASK_SECONDS
    )
    return done


def _told(house: Tree, minion: str) -> str:
    """Synapse's machines know where the database is; who cannot hear it hears it later."""
    machines, placement = Machines(__opts__), house.placement(movement.map_of(house))
    names = sorted({
        placement.synapse, *(row.machine for row in workers.of(placement).processes.values())
    })  # fmt: skip
    wrong = bring_modules(machines, names, bound=APPLY_SECONDS)
    here = [name for name in names if name not in wrong]
    answers = machines.calls(here, "state.sls", FINDS, bound=APPLY_SECONDS, queue=QUEUE)
    every = {**{name: MachineError(line) for name, line in wrong.items()}, **answers}
    return str(_told_later(house, minion, every, "know it")["said"])


def _told_later(house: Tree, minion: str, answers: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Who did what in a state run; reconcile has it done by all others once they answer."""
    wrong = {name: str(row) for name, row in answers.items() if isinstance(row, MachineError)}
    telling_run.Ledger(house, minion).late({name: () for name in wrong})
    there = {name: row for name, row in answers.items() if name not in wrong}
    words = f"{', '.join(there) or 'nobody'} {what}"
    later = [f"later: {line}" for line in sorted(wrong.values())]
    return {"said": "; ".join([words, *later]), "changes": _changed(there)}


def _applied(machines: Machines, names: Sequence[str], sls: str, what: str) -> dict[str, Any]:
    """State runs on machines at once; what they changed.

    :raises MachineError: one failed.
    """
    answers = machines.calls(names, "state.sls", sls, bound=APPLY_SECONDS, queue=QUEUE)
    if wrong := [str(row) for row in answers.values() if isinstance(row, MachineError)]:
        raise MachineError(f"{what}: {'; '.join(wrong)}")
    return _changed(answers)


def _changed(answers: Mapping[str, Any]) -> dict[str, Any]:
    """What state runs have changed, of those that changed something."""
    changes = {
        name: {key: row["changes"] for key, row in states.items() if row.get("changes")}
        for name, states in answers.items()
    }
    return {name: rows for name, rows in changes.items() if rows}


def _waited(look: Callable[[], tuple[str, str]], seconds: float, what: str) -> str:
    """The first answer of a look that is not empty.

    :param look: gives it, and what is so until then.
    :raises MachineError: there was none within so many seconds.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            answer, so_far = look()
        except MachineError as error:
            answer, so_far = "", str(error)
        if answer:
            return answer
        if time.monotonic() > end:
            raise MachineError(f"waited {seconds:g} s for {what}: {so_far}")
        time.sleep(1)
