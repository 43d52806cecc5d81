"""What is wrong with the database's cluster, in words, each with the next step. Pure.

Runbooks: docs/database-cluster.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import Problem
from .cluster import RUNNING

Row = Mapping[str, Any]

RUNBOOKS = "docs/database-cluster.md"

#: Less than this share of a disk is little: WAL of a busy minute, and a vacuum, still fit.
DISK_SHARE = 0.05

#: A slot may keep 10 GB (``max_slot_wal_keep_size``); from here on somebody should look.
SLOT_BYTES = 2 << 30

#: Words of an etcd machine that serves (:func:`.cluster.watcher`).
SERVES = ("leads", "follows")


def problems(
    names: Iterable[str], rows: Mapping[str, Row], found: Row, etcd: Mapping[str, str]
) -> list[Problem]:
    """All that is wrong.

    :param names: machines on which PostgreSQL is to run.
    :param rows: machine to its ``patroni.status``, or ``{"error": text}``.
    :param found: the ``patroni.status`` that knows most: the primary's, if there is one.
    :param etcd: machine of etcd to what :func:`.cluster.watcher` says of it.
    """
    return sorted({
        *_etcd(etcd, found), *_primary(found), *_promise(found),
        *_members(list(names), rows, found), *_slots(found), *_disks(rows),
    })  # fmt: skip


def _etcd(etcd: Mapping[str, str], found: Row) -> Iterator[Problem]:
    away = {name: word for name, word in etcd.items() if word not in SERVES}
    for name, word in away.items():
        yield Problem(name, f"etcd: {word}", f"journalctl -u etcd on {name}")
    # Whether they can be asked says nothing of etcd: Patroni says whether it has one.
    if found.get("dcs"):
        what = (
            f"Patroni does not reach it, and {len(etcd) - len(away)} of {len(etcd)} say that they "
            "serve: nothing fails over, and the primary steps down as soon as one database does "
            "not answer it"
        )
        yield Problem("etcd", what, f"start the others; see 'Etcd is gone' in {RUNBOOKS}")


def _primary(found: Row) -> Iterator[Problem]:
    if not found.get("leader"):
        do = f"see 'No standby may lead' and 'Etcd is gone' in {RUNBOOKS}"
        yield Problem("the database", "has no primary: nobody takes writes", do)
    if found.get("pause"):
        do = f"salt {found.get('leader') or '<database>'} patroni.resume"
        yield Problem("the database", "is paused: nobody takes over", do)


def _promise(found: Row) -> Iterator[Problem]:
    if not found.get("leader") or found.get("sync"):
        return
    do = "bring a standby back: see the machines"
    if found.get("durability") == "sync":
        what = "sync: no standby has all; what the primary acknowledges now is on it alone"
        yield Problem("the database", what, do)
    if found.get("durability") == "sync-strict":
        yield Problem("the database", "sync-strict: no standby, no write is acknowledged", do)


def _members(names: list[str], rows: Mapping[str, Row], found: Row) -> Iterator[Problem]:
    known = found.get("members", {})
    first = found.get("leader", "")
    line = known.get(first, {}).get("timeline")
    for name in names:
        if error := rows.get(name, {}).get("error"):
            yield Problem(name, str(error), f"see the machine, and journalctl -u patroni on {name}")
        if found.get("dcs"):
            # Without etcd nobody knows of the others.
            continue
        member = known.get(name)
        if member is None:
            what = "has no key in etcd: its Patroni does not run, or does not reach etcd"
            yield Problem(name, what, f"journalctl -u patroni on {name}")
            continue
        if member["state"] not in RUNNING:
            what = f"PostgreSQL is {member['state']}"
            yield Problem(name, what, f"PostgreSQL's log and journalctl -u patroni on {name}")
        elif first and name != first and _behind(member, line):
            what = f"is on timeline {member['timeline']}, the primary on {line}"
            yield Problem(name, what, f"if it stays so: salt-run database.reinit {name}")
        if member.get("pending_restart"):
            yield Problem(name, "settings wait for a restart", f"salt {name} patroni.restart")


def _behind(member: Row, line: Any) -> bool:
    return None not in (member.get("timeline"), line) and member["timeline"] != line


def _slots(found: Row) -> Iterator[Problem]:
    members = {slot_of(name): name for name in found.get("members", {})}
    for slot in found.get("here", {}).get("slots") or ():
        name, kept = slot["name"], slot.get("kept_bytes") or 0
        whose = members.get(name, "")
        if slot.get("wal_status") == "lost":
            do = "drop it, as nobody can go on from it: SELECT pg_drop_replication_slot"
            do = f"salt-run database.reinit {whose}" if whose else f"{do}('{name}')"
            yield Problem(f"slot {name}", "has lost WAL that it needed", do)
        elif kept > SLOT_BYTES:
            away = "" if slot.get("active") else " for somebody who is away"
            what = f"keeps {kept / (1 << 30):.1f} GiB of WAL{away}"
            yield Problem(f"slot {name}", what, f"see 'A slot keeps WAL' in {RUNBOOKS}")


def _disks(rows: Mapping[str, Row]) -> Iterator[Problem]:
    for name, row in rows.items():
        disk = row.get("here", {}).get("disk")
        if disk and disk["free"] < DISK_SHARE * disk["size"]:
            free, size = (disk[key] / (1 << 20) for key in ("free", "size"))
            what = f"{free:.0f} of {size:.0f} MiB are free for the database"
            yield Problem(name, what, f"see 'The disk is full' in {RUNBOOKS}")


def slot_of(member: str) -> str:
    """Patroni's slot for a member (``slot_name_from_member_name`` in its ``dcs/__init__.py``)."""
    return re.sub(r"[-. ]", "_", member.lower())[:63]
