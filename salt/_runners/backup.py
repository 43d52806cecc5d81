"""Backups of the database: what there is, one more, one restored to see; and back to a time.

The nightly backups need no master: each database machine asks every hour whether it is its turn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from saltworks import backup_report, backups, bank, lock, restoring
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines, bring_modules
from saltworks.parts.database import cluster
from saltworks.tree import Tree

__opts__: dict[str, Any]

#: What a machine's answer may take in seconds: a report, whose store may be gone; a segment's way
#: to the store.
REPORT_SECONDS, MARK_SECONDS = 480, 1200

#: A backup, a verification and a restore are bounded on the machine by their size; here by a day.
LONG_SECONDS = 86400

__func_alias__ = {"take": "now"}


@refusing
def status() -> dict[str, Any]:
    """Backups and when each was restored, times that are covered, archiving, what is wrong.

    :returns: with a problem the run fails.

    CLI Example:

    .. code-block:: bash

        salt-run backup.status
    """
    house = Tree.of(__opts__)
    primary, reports = _asked(house, "backup.status")
    verdicts = bank.read(house.store, backups.RECORD)
    table = backup_report.table(reports[primary], verdicts, time.time())
    shown = {"primary": primary, **table}
    return {"data": shown, "retcode": 1} if shown["problems"] else shown


@refusing
def take(type: str = "diff") -> str:
    """A backup now, of the primary.

    :param type: ``full``, ``diff`` (what changed since the last full one) or ``incr`` (since the
        last of any type).

    CLI Example:

    .. code-block:: bash

        salt-run backup.now full
    """
    house = Tree.of(__opts__)
    primary, _ = _asked(house, "backup.now")
    _say(f"{primary}: a {type} backup is being taken")
    done = Machines(__opts__).call(primary, "pgbackrest.backup", type, bound=LONG_SECONDS)
    stored, whole = backup_report.size(done["stored"]), backup_report.size(done["bytes"])
    return f"{done['taken']}: {whole}, {stored} of it new in the store, {done['seconds']} s"


@refusing
def verify(machine: str = "", label: str = "") -> str | dict[str, Any]:
    """Restore a backup into a server of its own, compare it, and write down the verdict.

    The newest is recovered to a point that is set now, and its content is compared with the live
    database's at that point. An older one, named by ``label``, is recovered to its own end.

    :param machine: where; a standby's if there is one, else the primary's.
    :param label: see :func:`status`.

    CLI Example:

    .. code-block:: bash

        salt-run backup.verify
    """
    house, machines = Tree.of(__opts__), Machines(__opts__)
    primary, reports = _asked(house, "backup.verify")
    store = reports[primary]["store"]
    if "error" in store:
        raise Refused("backup.verify", [Problem("store", store["error"], "docs/backup.md")])
    chosen = backups.newest(store["backups"], label)
    where = machine or next((name for name in sorted(reports) if name != primary), primary)
    around = None
    if chosen == backups.newest(store["backups"]):
        _say(f"{primary}: a point in the WAL, and its content")
        around = machines.call(primary, "pgbackrest.mark", bound=MARK_SECONDS)
    _say(f"{where}: {chosen['label']} ({backup_report.size(chosen['bytes'])}) is being restored")
    seen = machines.call(
        where,
        "pgbackrest.verify",
        chosen["label"],
        chosen["bytes"],
        around=around,
        bound=LONG_SECONDS,
    )
    verdict = {"at": time.time(), "machine": where, **seen}
    with house.changing(backups.RECORD) as rows:
        left = backups.kept({**rows, chosen["label"]: verdict}, store["backups"])
        rows.clear()
        rows.update(left)
    words = f"{chosen['label']} on {where}: {seen['why']} ({seen['seconds']} s)"
    if not seen["good"]:
        return {"data": f"bad: {words} -> docs/backup.md, A backup is bad", "retcode": 1}
    return f"good: {words}"


@refusing
def covered(target: str, machine: str = "") -> dict[str, Any]:
    """Refuse a time that the database cannot be restored to; nothing is changed.

    :param target: ISO 8601 with zone; or ``latest``, when the server is lost.
    :param machine: where; the primary's.
    :returns: for a step: what a restore would begin with.
    """
    primary, found = _source(target, machine)
    said = f"{primary}: from {found.label}, along timeline {found.timeline}"
    return {"said": said, "changes": {}}


@refusing
def restore(target: str, machine: str = "") -> dict[str, Any]:
    """The database as it was at a time, on the machine that is its primary.

    Of a cluster the door is shut meanwhile, Synapse's processes are stopped, and standbys make new
    copies afterwards. Else who conducts has done that: the machine refuses as long as anybody is
    connected.

    :param target: ISO 8601 with zone; or ``latest``, when the server is lost.
    :param machine: where; the primary's. To be named when there is none any more.
    """
    house = Tree.of(__opts__)
    lock.take(house, "restore of the database", LONG_SECONDS)
    primary, found = _source(target, machine)
    whole = backup_report.size(found.bytes)
    _say(f"{primary}: {found.label} ({whole}) is being restored to {target}")
    machines = Machines(__opts__)
    cmap = house.map()
    if cmap is not None and house.placement(cmap).clustered:
        return restoring.conducted(
            house, machines, primary, target, lambda: _restored(machines, primary, target, found)
        )
    return _restored(machines, primary, target, found)


def _restored(
    machines: Machines, primary: str, target: str, found: backups.Source
) -> dict[str, Any]:
    done = machines.call(
        primary,
        "pgpitr.restore",
        target,
        found.label,
        found.timeline,
        found.bytes,
        bound=LONG_SECONDS,
    )
    if not done["changed"]:
        return {"said": restoring.again(primary, target), "changes": {}}
    said = (
        f"{primary}: restored to {target}, last commit {done['reached']}; timeline "
        f"{done['timeline']['from']} to {done['timeline']['to']}; what was before is kept in "
        f"{done['kept']}"
    )
    return {"said": said, "changes": {primary: done}}


def _source(target: str, machine: str) -> tuple[str, backups.Source]:
    if target != backups.LATEST:
        backups.moment(target)
    house = Tree.of(__opts__)
    primary, reports = _asked(house, "restore", machine)
    store, server = reports[primary]["store"], reports[primary]["server"]
    if "error" in store:
        raise Refused("restore", [Problem("store", store["error"], "docs/backup.md")])
    live = "error" not in server
    found = backups.source(target, store["backups"], store["stretches"], time.time(), live)
    return primary, found


def _asked(
    house: Tree, what: str, machine: str = ""
) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """The primary's machine, and the report of each that answers.

    With one machine alone it is that, even when its server does not run.

    :param machine: the one to take, whatever it is.
    :raises Refused: there is no primary, or more than one.
    """
    cmap = house.map()
    names = list(cluster.running(house.placement(cmap))) if cmap else []
    if not names:
        say = f"backups begin with {cluster.MILESTONE}"
        raise Refused(what, [Problem("database", "no machine of the cluster is registered", say)])
    machines = Machines(__opts__)
    bring_modules(machines, names)
    answers = machines.calls(names, "pgbackrest.report", bound=REPORT_SECONDS)
    reports = {name: row for name, row in answers.items() if not isinstance(row, MachineError)}
    found = [name for name in names if _is_primary(reports.get(name))]
    if len(names) == len(reports) == 1:
        found = list(reports)
    if machine:
        found = [name for name in reports if name == machine]
    if len(found) != 1:
        wrong = [Problem(name, str(row), "see that machine")
                 for name, row in answers.items() if name not in reports]
        say = f"{', '.join(found) or 'no machine'} of {', '.join(names)}"
        wrong.append(Problem("database", f"not one primary: {say}", "salt-run database.status"))
        raise Refused(what, wrong)
    return found[0], reports


def _is_primary(report: Mapping[str, Any] | None) -> bool:
    return report is not None and report["server"].get("standby") is False


def _say(words: str) -> None:
    print(f"backup: {words}", file=sys.stderr, flush=True)
