"""What a pass of reconcile sees: the map, the records, the keys, and the machines themselves."""

from __future__ import annotations

import calendar
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import (
    admission,
    bank,
    clustermap,
    invites,
    joins,
    membership,
    reconcile,
    registry,
    telling,
    workers,
)
from .invites import Invite
from .keys import Keys
from .lock import stamp
from .minions import MachineError, Machines
from .parts.database import cluster
from .plan import PORT, Placement, endpoint
from .reconcile import Seen
from .tree import Tree

log = logging.getLogger(__name__)

#: Record of what the last pass did.
PASSES = "passes"

#: How long machines may take to answer, in seconds, those that are still at it, and the front to
#: look at all workers. A machine that was just admitted is not there yet: its start is heard
#: while a pass waits for it, and the next pass should not have to wait long.
PING_SECONDS, PATIENCE_SECONDS, LOOK_SECONDS = 2, 1, 30

#: How long an invite that is over is still shown, in seconds.
KEEP_SECONDS = 86400.0


def any_known(house: Tree) -> bool:
    """Whether there is anything for reconcile to look at.

    :raises Refused: the map cannot be read.
    """
    records = (registry.RECORD, invites.RECORD, telling.TOLD, telling.LATE)
    if any(bank.read(house.store, name) for name in records):
        return True
    cmap = house.map()
    return bool(cmap and membership.named(cmap))


def uses(known: Mapping[str, Invite], now: float) -> dict[str, str]:
    """Who came by the invites that stand, minion to fingerprint; the newest counts."""
    found: dict[str, str] = {}
    for invite in sorted(known.values(), key=lambda row: row.made):
        if now < invite.expires:
            found.update({minion: key for minion, key in invite.used.items() if key})
    return found


def gathered(house: Tree, keys: Keys, machines: Callable[[], Machines], now: float) -> Seen:
    """What is so at this moment; machines are asked only if there are members.

    :raises Refused: the map or a record cannot be read.
    """
    cmap = house.map()
    known = registry.of(bank.read(house.store, registry.RECORD))
    if cmap is None:
        return Seen({})
    if untold := set(bank.read(house.store, telling.TOLD)):
        # Nothing else is done before, so nobody else is asked: clients may wait.
        return Seen(known, untold=untold)
    used = uses(invites.of(bank.read(house.store, invites.RECORD)), now)
    named = membership.named(cmap)
    names = sorted({*known, *used, *named})
    late_rows = bank.read(house.store, telling.LATE)
    if not names and not late_rows:
        return Seen({})
    placement = house.placement(cmap)
    said = {
        name: membership.declared(cmap, name, clustered=placement.clustered) for name in names
    }
    declared = {name: row for name, row in said.items() if row}
    accepted = keys.fingerprints(names)
    barred = {name: why for name, row in known.items() if (why := barrier(placement, row.kind))}
    rows = bank.read(house.store, joins.RECORD)
    out = set(bank.read(house.store, admission.OUT))
    late = telling.late(placement, late_rows, cluster.neighbours(cmap, placement))
    ready = [name for name, member in known.items() if member.state == "ready"]
    waiting = {*late} | {
        name
        for name, member in known.items()
        if (name not in barred and not joins.finished(rows.get(name, {}), member))
        or (member.state in ("joining", "draining"))
    }
    asked = machines() if ready or waiting else None
    patience = PING_SECONDS, PATIENCE_SECONDS
    # Of the database's machines Patroni looks who lives.
    serve = [name for name in ready if known[name].kind != membership.DATABASE]
    well = healthy(house, asked) if asked and serve else {}
    return Seen(
        members=known,
        declared=declared,
        keys=accepted,
        let_in={**{name: accepted[name] for name in named if name in accepted}, **used},
        out=out,
        healthy=well,
        blind=placement.front if serve and not well else "",
        answering=asked.answering(sorted(waiting), *patience) if asked and waiting else set(),
        not_before={name: float(row.get("not_before", 0.0)) for name, row in rows.items()},
        not_left_before=_not_before(rows, "leave"),
        not_lost_before=_not_before(rows, "lose"),
        unfinished={name for name in ready if not joins.finished(rows.get(name, {}), known[name])},
        late={name: float(row.get("not_before", 0.0)) for name, row in late.items()},
        barred=barred,
    )


def barrier(placement: Placement, kind: str) -> str:
    """Why no machine of a kind can join as things stand; empty when it can.

    Nobody joins before what he needs is there, nor while it goes.
    """
    if kind == membership.DATABASE:
        there = placement.clustered and not placement.upcoming
        return "" if there else "standbys can be only once orch.m4.database has made the cluster"
    there = bool(placement.redis) and not placement.upcoming
    return "" if there else "workers can be only when a machine with the role redis serves"


def _not_before(rows: Mapping[str, Any], what: str) -> dict[str, float]:
    return {
        name: float(row["leaving"]["not_before"])
        for name, row in rows.items()
        if row.get("leaving", {}).get("what") == what
    }


def urls(house: Tree) -> dict[str, list[str]]:
    """Base URLs of the processes of each member that runs any."""
    cmap = house.map()
    if cmap is None:
        return {}
    found: dict[str, list[str]] = {}
    for process in workers.of(house.placement(cmap)).processes.values():
        url = f"http://{endpoint(process.address, process.port)}"
        found.setdefault(process.machine, []).append(url)
    return found


def swept(house: Tree, now: float) -> None:
    """What invites that are over leave behind is taken away."""
    with house.changing(invites.RECORD) as rows:
        for pattern, invite in invites.of(rows).items():
            if now >= invite.expires or len(invite.used) >= invite.uses:
                house.user_data(pattern).unlink(missing_ok=True)
            if now >= invite.expires + KEEP_SECONDS:
                del rows[pattern]


def counted(
    row: Mapping[str, Any],
    began: float,
    ended: float,
    done: Sequence[str],
    waits: Mapping[str, str],
) -> dict[str, Any]:
    """The record of passes after one more.

    :param waits: machine to what it waits for.
    """
    return {
        "count": int(row.get("count", 0)) + 1,
        "began": began,
        "seconds": round(ended - began, 3),
        "done": list(done),
        "waits": dict(waits),
    }


def table(house: Tree) -> list[dict[str, Any]]:
    """One row a member, for the operator's screen."""
    rows, out = bank.read(house.store, joins.RECORD), bank.read(house.store, admission.OUT)
    waits = bank.read(house.store, PASSES).get("waits", {})
    told = bank.read(house.store, telling.TOLD)
    shown = []
    for member in registry.of(bank.read(house.store, registry.RECORD)).values():
        row = rows.get(member.minion, {})
        failed = [part for part in (row, row.get("leaving", {})) if part.get("error")]
        errors = [
            f"{part['error']}; tried again after {stamp(part['not_before'])}" for part in failed
        ]
        waiting = waits.get(member.minion, "")
        if member.minion in told:
            waiting = "others are being told of it, or that has failed: salt-run reconcile.last"
        shown.append(
            {
                "minion": member.minion,
                "kind": member.kind,
                "address": member.address,
                "state": member.state,
                "since": member.since,
                "generation": member.generation,
                "wanted": "out" if member.minion in out else "in",
                "waits_for": waiting,
                "error": "; ".join(errors),
            }
        )
    return shown


def healthy(house: Tree, machines: Machines, tries: int = 3) -> dict[str, bool]:
    """Whether members that are ready are well, as the front sees their processes.

    Not as Salt sees it: a machine whose minion has died may serve, and one that is cut off
    from its clients may answer the master.

    :param tries: looks at one that does not answer, before that is believed.
    """
    cmap = house.map()
    assert cmap is not None
    placement = house.placement(cmap)
    found = workers.of(placement)
    ready: dict[str, dict[str, str]] = {}
    for row in found.processes.values():
        if row.ready:
            url = f"http://{endpoint(row.address, row.port)}"
            ready.setdefault(row.machine, {})[row.name] = url
    if not ready:
        return {}
    main = f"http://{endpoint(clustermap.address(cmap, placement.synapse), PORT)}"
    every = sorted(url for rows in ready.values() for url in rows.values())
    try:
        answers = machines.call(
            placement.front,
            "synapse_worker.answering",
            [*every, main],
            tries=tries,
            timeout=LOOK_SECONDS,
            bound=2 * LOOK_SECONDS,
        )
    except MachineError as error:
        log.warning("reconcile: nobody's health is known: %s", error)
        return {}
    well = {
        name: {process: bool(answers.get(url)) for process, url in rows.items()}
        for name, rows in ready.items()
    }
    believed = reconcile.verdicts(well, workers.dutiful(found), bool(answers.get(main)))
    if not believed:
        log.warning("reconcile: nobody answers %s, so it is cut off itself", placement.front)
    return believed


def admitted_at(member: registry.Member) -> float:
    """When a member came into its state, seconds since the epoch."""
    return float(calendar.timegm(time.strptime(member.since, "%Y-%m-%dT%H:%M:%SZ")))
