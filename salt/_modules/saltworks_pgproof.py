"""The proof of a backup: restored while people chat, compared, and migrated for practice."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "pgproof"

__salt__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def prove(
    directory: str,
    cluster: str | Mapping[str, Any] | None = None,
    rehearse: Mapping[str, Any] | None = None,
    amcheck_seconds: float = 600,
) -> dict[str, Any]:
    """What ``pgbackup.prove`` does; see there."""
    manifest = __salt__["pgcluster.read_json"](f"{directory}/manifest.json")
    if not manifest:
        raise CommandExecutionError(f"{directory}: there is no complete backup; run pgbackup.base")
    at = __salt__["pgcluster.locate"](cluster)
    started = time.monotonic()
    with __salt__["pgcluster.held"](directory, "proof"):
        around = bracket(at, manifest["database"])
        __salt__["pgbackup.arrived"](directory, around["segment"], 60)
        settings = dict(rehearse or {})
        login = _login(settings) if settings else {}
        with __salt__["pgscratch.opened"](directory, around["point"], at, login=login) as copy:
            there = __salt__["pgcluster.connection"](copy, manifest["database"])
            value = __salt__["synapse_fingerprint.take"](
                there, only=list(around["before"]), upto=around["upto"]
            )
            wrong = unproven(around["before"], around["after"], value)
            if wrong:
                raise CommandExecutionError(
                    f"{directory}: the restored copy differs from the live database at "
                    f"{around['point']}: {'; '.join(wrong)}. Do not upgrade on this backup: "
                    "delete it, take it again, and look at the disk."
                )
            proof = {
                "when": __salt__["pgcluster.now"](),
                "point": around["point"],
                "quiet": around["before"] == around["after"],
                "compared": len(value),
                "restore_seconds": copy["seconds"],
                "bytes": copy["bytes"],
                "backup": manifest["when"],
                "amcheck": amcheck(copy, manifest["database"], amcheck_seconds),
                "rehearsal": _rehearse(
                    copy, manifest["database"], settings, value, around["upto"]
                ),
            }
        proof["seconds"] = round(time.monotonic() - started, 2)
        __salt__["pgcluster.write_json"](f"{directory}/proof.json", proof)
    return proof


def unproven(
    before: Mapping[str, Any], after: Mapping[str, Any], restored: Mapping[str, Any]
) -> list[str]:
    """Which measures of a restored copy cannot be what was live between two fingerprints.

    :param before: taken before the restore point.
    :param after: taken after it.
    :param restored: taken of the copy.
    :returns: the contradictions, in words; a text that changed in between proves nothing
        and contradicts nothing.
    """
    wrong = []
    for measure, first in sorted(before.items()):
        last, value = after.get(measure), restored.get(measure)
        if isinstance(first, int) and isinstance(last, int):
            right = isinstance(value, int) and min(first, last) <= value <= max(first, last)
        else:
            right = value == first or (first != last and value is not None)
        if right:
            continue
        wrong.append(f"{measure} was {first} before and {last} after, the copy has {value}")
    return wrong


def bracket(at: Mapping[str, Any], database: str) -> dict[str, Any]:
    """A restore point with a fingerprint on each side; a quiet moment is tried for.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param database: its name.
    :returns: ``point``, ``upto``, ``before``, ``after``, and the WAL ``segment`` that has it,
        which is complete.
    """
    there = __salt__["pgcluster.connection"](at, database)
    statement = __salt__["synapse_fingerprint.statement"]
    wanted = __salt__["synapse_fingerprint.measures"](there)
    before = __salt__["synapse_fingerprint.take"](there, only=wanted)
    for _ in range(5):
        upto = before.get("max:events")
        name = "saltworks_proof_" + __salt__["pgcluster.stamp"]()
        fixed = statement(wanted, upto)
        before, _, after = __salt__["pgcluster.sql"](
            there,
            f"{fixed}\nSELECT to_json(pg_create_restore_point('{name}')::text);\n{fixed}",
            timeout=900,
            what="the fingerprints around a restore point",
        )
        if before == after:
            break
    found = {"point": name, "upto": upto, "before": before, "after": after}
    return {**found, "segment": _switch(there)}


def _switch(there: Mapping[str, Any]) -> str:
    segment: str = __salt__["pgcluster.sql"](
        there, "SELECT to_json(pg_walfile_name(pg_switch_wal()));", what="a switch of WAL"
    )[0]
    return segment


def _login(settings: Mapping[str, Any]) -> dict[str, str]:
    params = __salt__["synapse_db.connection"](settings["config"])["params"]
    return {settings.get("user") or "root": str(params["user"])}


def _rehearse(
    copy: Mapping[str, Any],
    database: str,
    settings: Mapping[str, Any],
    before: Mapping[str, Any],
    upto: int,
) -> dict[str, Any] | None:
    """Migrate the copy with the new release, as Synapse's own role, and time it."""
    if not settings:
        return None
    user = settings.get("user") or "root"
    role = _login(settings)[user]
    with open(settings["config"], encoding="utf-8") as file:
        configuration = yaml.safe_load(file)
    configuration["database"] = {
        "name": "psycopg2",
        "args": {
            "host": copy["socket"],
            "port": copy["port"],
            "user": role,
            "dbname": database,
            "cp_min": 1,
            "cp_max": 5,
        },
    }
    path = f"{copy['socket']}/homeserver.yaml"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        yaml.safe_dump(configuration, out)
    if os.geteuid() == 0:
        os.chown(path, __salt__["pgcluster.account"](user).pw_uid, -1)
    __salt__["pgscratch.durable"](copy)
    there = __salt__["pgcluster.connection"](copy, database)
    events = __salt__["pgcluster.sql"](
        there,
        "SELECT to_json(greatest(reltuples, 0)::bigint) FROM pg_class WHERE relname = 'events';",
    )[0]
    started = time.monotonic()
    __salt__["synapse_db.run_update"](
        path, settings["release"], user, False, float(settings.get("timeout", 14400))
    )
    seconds = round(time.monotonic() - started, 2)
    state = __salt__["synapse_db.schema"](connection=there)
    after = __salt__["synapse_fingerprint.take"](there, only=list(before), upto=upto)
    lost = __salt__["synapse_fingerprint.differences"](before, after, migrated=True)
    if state["pending"] or lost:
        raise CommandExecutionError(
            f"the rehearsed migration to {settings['release']} left {len(state['pending'])} "
            f"updates undone and these differences: {'; '.join(lost) or 'none'}; the live "
            "database is untouched. Do not upgrade."
        )
    return {"seconds": seconds, "events": events, "schema": state, "release": settings["release"]}


def amcheck(copy: Mapping[str, Any], database: str, seconds: float) -> dict[str, Any]:
    """Every page of a restored copy is read, and tables and indexes are checked.

    :param copy: the running copy, see ``pgscratch.opened``.
    :param database: its name.
    :param seconds: for all of it; 0 leaves it out.
    :returns: ``done``, and ``seconds`` or ``why`` not.
    :raises CommandExecutionError: the copy is damaged.
    """
    if not seconds:
        return {"done": False, "why": "left out"}
    control = __salt__["pgcluster.sql"](
        __salt__["pgcluster.connection"](copy, database),
        "SELECT to_json(count(*)) FROM pg_available_extensions WHERE name = 'amcheck';",
    )[0]
    if not control:
        return {"done": False, "why": "the server's programs bring no amcheck"}
    started = time.monotonic()
    with __salt__["pgcluster.service"](__salt__["pgcluster.connection"](copy, database)) as way:
        try:
            __salt__["pgcluster.run"](
                [f"{copy['bindir']}/pg_amcheck", "--install-missing", "-j", "2", "-d", database],
                os_user=copy["os_user"],
                timeout=seconds,
                what=f"pg_amcheck of the restored copy of {database}",
                environment=way,
            )
        except CommandExecutionError as problem:
            if "was still running" not in str(problem):
                raise CommandExecutionError(
                    f"the restored copy of {database} is damaged, and so most likely is the live "
                    f"database: {problem} Repair it (REINDEX for an index) before any upgrade."
                ) from None
            return {"done": False, "why": f"no damage found in the {seconds:g} s it was given"}
    return {"done": True, "seconds": round(time.monotonic() - started, 2)}
