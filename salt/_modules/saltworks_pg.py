"""The way back of an upgrade: a base backup taken live, WAL to named points, restores.

    base     live: slot, WAL stream, pg_basebackup, pg_verifybackup, manifest
    prove    live: restored to a point in a scratch server and compared; rehearsal
    mark     in the window: the point to come back to (does not grow with the data)
    restore  rollback: Synapse's database as it was at the mark, no other touched
    release  finalize: stream stopped, slot dropped, backup kept or deleted

A backup folder holds ``base/`` ``wal/`` ``manifest.json`` (written last) ``proof.json``
``marks/<name>.json`` and, while a restore is under way, ``restore.json``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgbackup"

__salt__: dict[str, Any]

#: Copies of the cluster that must fit beside it: the base, and a scratch server made of it.
COPIES = 2.0

#: What WAL, logs and the dump of a restore may take on top.
MARGIN = 512 << 20

Cluster = str | Mapping[str, Any] | None


def __virtual__() -> str:
    return __virtualname__


def check(directory: str, database: str = "synapse", cluster: Cluster = None) -> list[str]:
    """Everything that speaks against a base backup here, each with what to do.

    :param directory: the backup's folder.
    :param database: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    :returns: problems; an empty list means go.

    CLI Example:

    .. code-block:: bash

        salt legacy pgbackup.check /var/backups/saltworks/m1 synapse
    """
    at = __salt__["pgcluster.locate"](cluster)
    server = __salt__["pgcluster.server"](at)
    found = []
    if database not in server["databases"]:
        found.append(
            f"the cluster on port {at['port']} has no database {database!r}; it has "
            f"{', '.join(server['databases'])}"
        )
    if server["wal_level"] == "minimal":
        found.append("wal_level is minimal; set it to replica and restart PostgreSQL")
    if server["max_wal_senders"] - server["senders"] < 2:
        found.append(
            f"max_wal_senders is {server['max_wal_senders']}, {server['senders']} in use; the "
            "backup needs 2 free: raise it and restart PostgreSQL"
        )
    if server["max_slots"] - server["slots"] < 1:
        found.append(
            f"max_replication_slots is {server['max_slots']}, all in use; raise it and restart "
            "PostgreSQL, or drop a slot that nobody uses"
        )
    if server["synchronous"]:
        found.append(
            f"synchronous_standby_names is {server['synchronous']!r}; a commit could wait for the "
            "backup's stream: name the standbys that it means"
        )
    try:
        _replication(at)
    except CommandExecutionError as problem:
        found.append(
            f"a replication connection over {at['socket']} is refused ({problem}); add `local "
            f"replication {at['os_user']} peer` to pg_hba.conf and reload"
        )
    return found + space(directory, server["bytes"], server["sizes"].get(database, 0), at["data"])


def space(directory: str, cluster_bytes: int, database_bytes: int, data: str) -> list[str]:
    """Whether base, scratch copy and a restored database would fit.

    :param directory: the backup's folder.
    :param cluster_bytes: size of the whole cluster.
    :param database_bytes: size of Synapse's database.
    :param data: the cluster's data folder.
    :returns: problems.
    """
    free = __salt__["pgcluster.free_bytes"]
    own = int(COPIES * cluster_bytes) + MARGIN
    live = database_bytes + MARGIN
    places = [(directory, own, "the base backup and its proof")]
    if _device(directory) == _device(data):
        places = [(directory, own + live, "the base backup, its proof and a rollback")]
    else:
        places.append((data, live, "a rollback beside the failed database"))
    return [
        f"{path}: {free(path) >> 20} MiB free, {need >> 20} MiB needed for {what}; make room or "
        "choose another folder"
        for path, need, what in places
        if free(path) < need
    ]


def base(
    directory: str,
    database: str = "synapse",
    cluster: Cluster = None,
    slot: str = "saltworks",
    timeout: float = 14400,
) -> dict[str, Any]:
    """Take the base backup, live, and keep the WAL after it coming.

    A complete backup of the same cluster stands and is not taken again; above all not
    when the database has moved on to a new schema, as it is then the only way back.

    :param directory: the backup's folder, made when missing.
    :param database: Synapse's database.
    :param cluster: see ``pgcluster.locate``.
    :param slot: name of the replication slot.
    :param timeout: seconds for the copy.
    :returns: the manifest, with ``changed``.
    :raises CommandExecutionError: with every problem of :func:`check`, or when it fails.

    CLI Example:

    .. code-block:: bash

        salt legacy pgbackup.base /var/backups/saltworks/m1 synapse
    """
    at = __salt__["pgcluster.locate"](cluster)
    manifest, reason = standing(directory, database, at, slot)
    if manifest and not reason:
        started = False
        if not manifest.get("released"):
            started = __salt__["pgreceiver.start"](directory, slot, at)
        return {**manifest, "changed": False, "receiver_started": started}
    problems = check(directory, database, at)
    if problems:
        raise CommandExecutionError(f"{directory}: no backup was begun: " + "; ".join(problems))
    __salt__["pgcluster.make_directory"](directory, at["os_user"])
    with __salt__["pgcluster.held"](directory, "base backup"):
        return {**_take(directory, database, at, slot, timeout), "changed": True}


def standing(
    directory: str, database: str, cluster: Cluster = None, slot: str = "saltworks"
) -> tuple[dict[str, Any] | None, str]:
    """Whether the backup that is there may stand.

    :returns: the manifest (None without one) and why it may not stand (empty: it may).
    :raises CommandExecutionError: when it is no longer usable, and the database has moved
        on, so that taking it anew would destroy the only way back.
    """
    manifest = __salt__["pgcluster.read_json"](f"{directory}/manifest.json")
    if not manifest:
        return None, "there is none"
    at = __salt__["pgcluster.locate"](cluster)
    server = __salt__["pgcluster.server"](at)
    if manifest["system_identifier"] != server["system_identifier"]:
        return manifest, "it is of another cluster"
    if manifest["database"] != database:
        return manifest, f"it is of the database {manifest['database']}"
    if _moved(manifest["schema"], _schema(at, database)):
        return manifest, ""
    if manifest.get("released"):
        return manifest, "its stream of WAL was ended"
    stream = __salt__["pgreceiver.state"](slot, at)
    if not stream["exists"] or stream["lost"]:
        return manifest, "the server no longer keeps the WAL that follows it"
    if manifest["timeline"] != server["timeline"]:
        return manifest, "the cluster is on another timeline"
    return manifest, ""


def prove(
    directory: str,
    cluster: Cluster = None,
    rehearse: Mapping[str, Any] | None = None,
    amcheck_seconds: float = 600,
) -> dict[str, Any]:
    """Restore the backup, live, to a point made for it, and compare the content.

    Fingerprints are taken right before and right after the point. Where people write in
    between, a number must lie between the two; where nobody does, it must be equal.

    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    :param rehearse: ``config`` (homeserver.yaml of the new release), ``release`` (its
        folder), ``user`` (account to run as) and ``timeout``: migrate the copy, and say how
        long it took.
    :param amcheck_seconds: bound of pg_amcheck over the copy; 0 leaves it out.
    :returns: the proof: ``point``, ``compared``, ``seconds``, ``amcheck``, ``rehearsal``.
    :raises CommandExecutionError: when the copy differs or does not come up.

    CLI Example:

    .. code-block:: bash

        salt legacy pgbackup.prove /var/backups/saltworks/m1
    """
    value: dict[str, Any] = __salt__["pgproof.prove"](directory, cluster, rehearse, amcheck_seconds)
    return value


def mark(
    name: str,
    directory: str,
    cluster: Cluster = None,
    quiet: bool | str = True,
    timeout: float = 20,
) -> dict[str, Any]:
    """The point to come back to, with Synapse stopped. Costs the same for any size.

    Marking again makes a new point, as people may have written since; but once the
    database has moved on from the schema of the backup, the mark that is there stands.

    :param name: the mark's name, such as ``m1``.
    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    :param quiet: refuse while sessions other than a superuser's use the database; the name of
        a role: only that role's count, for a site where a monitor stays connected.
    :param timeout: seconds to wait, each, for the sessions to go and for the WAL.
    :returns: the mark: ``point``, ``lsn``, ``segment``, ``fingerprint``, ``seconds``,
        ``changed``.
    :raises CommandExecutionError: when the WAL does not arrive, or nothing is to be marked.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,30}", name):
        raise CommandExecutionError(f"{name!r}: a mark is named by A-Z a-z 0-9 _ - only")
    started = time.monotonic()
    manifest = _manifest(directory)
    at = __salt__["pgcluster.locate"](cluster)
    path = f"{directory}/marks/{name}.json"
    if moved_on(directory, at):
        known = __salt__["pgcluster.read_json"](path)
        if known:
            return {**known, "changed": False}
        raise CommandExecutionError(
            f"{directory}: the database has already moved on from the schema of the backup, and "
            f"there is no mark {name!r} to come back to; marking now would protect nothing"
        )
    if quiet:
        _alone(at, manifest["database"], quiet, timeout)
    __salt__["synapse_upgrade.refuse_pending"](_schema(at, manifest["database"]))
    there = __salt__["pgcluster.connection"](at, manifest["database"])
    fingerprint = __salt__["synapse_fingerprint.take"](there)
    point = _point(directory, name, at, timeout)
    os.makedirs(f"{directory}/marks", mode=0o700, exist_ok=True)
    record = {
        **point,
        "name": name,
        "when": __salt__["pgcluster.now"](),
        "database": manifest["database"],
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - started, 3),
    }
    __salt__["pgcluster.write_json"](path, record)
    return {**record, "changed": True}


def moved_on(directory: str, cluster: Cluster = None) -> bool:
    """Whether the live database has left the schema of the backup, so that marks stand.

    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    """
    manifest = _manifest(directory)
    at = __salt__["pgcluster.locate"](cluster)
    return _moved(manifest["schema"], _schema(at, manifest["database"]))


def restore(name: str, directory: str, cluster: Cluster = None, jobs: int = 2) -> dict[str, Any]:
    """Put Synapse's database back as it was at a mark; see ``pgrestore.database``."""
    value: dict[str, Any] = __salt__["pgrestore.database"](name, directory, cluster, jobs)
    return value


def records(directory: str) -> dict[str, Any]:
    """What is written down about a backup: ``manifest`` and ``proof``, None without one.

    :param directory: the backup's folder.
    """
    return {
        "manifest": __salt__["pgcluster.read_json"](f"{directory}/manifest.json"),
        "proof": __salt__["pgcluster.read_json"](f"{directory}/proof.json"),
    }


def status(directory: str, cluster: Cluster = None, slot: str = "saltworks") -> dict[str, Any]:
    """What is in a backup's folder and how its stream stands.

    :returns: ``manifest``, ``proof``, ``marks`` (names), ``stream``, ``wal_bytes``.
    """
    folder = f"{directory}/marks"
    names = sorted(n[:-5] for n in os.listdir(folder)) if os.path.isdir(folder) else []
    return {
        **records(directory),
        "marks": names,
        "stream": __salt__["pgreceiver.state"](slot, __salt__["pgcluster.locate"](cluster)),
        "wal_bytes": __salt__["pgcluster.tree_bytes"](f"{directory}/wal"),
    }


def release(
    directory: str, cluster: Cluster = None, slot: str = "saltworks", keep: bool = True
) -> dict[str, Any]:
    """Finalize: end the stream, drop the slot, keep or delete the backup.

    :param directory: the backup's folder.
    :param cluster: see ``pgcluster.locate``.
    :param slot: name of the replication slot.
    :param keep: leave base, WAL and marks: the marks stay restorable.
    :returns: ``changed`` and ``kept``.
    """
    at = __salt__["pgcluster.locate"](cluster)
    changed = __salt__["pgreceiver.stop"](directory, slot, at)
    if not os.path.isdir(directory):
        return {"changed": changed, "kept": False}
    changed = __salt__["pgscratch.sweep"](directory, at) or changed
    manifest = __salt__["pgcluster.read_json"](f"{directory}/manifest.json")
    if not keep:
        shutil.rmtree(directory)
        return {"changed": True, "kept": False}
    if manifest and not manifest.get("released"):
        manifest["released"] = __salt__["pgcluster.now"]()
        __salt__["pgcluster.write_json"](f"{directory}/manifest.json", manifest)
        changed = True
    return {"changed": changed, "kept": True}


def _take(
    directory: str, database: str, at: Mapping[str, Any], slot: str, timeout: float
) -> dict[str, Any]:
    """The copy itself, from a clean folder; the manifest is its last act."""
    started = time.monotonic()
    __salt__["pgreceiver.stop"](directory, slot, at)
    __salt__["pgscratch.sweep"](directory, at)
    for name in ("manifest.json", "proof.json", "restore.json"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
    for name in ("base", "wal", "marks", "tablespaces", "dump"):
        shutil.rmtree(f"{directory}/{name}", ignore_errors=True)
    __salt__["pgreceiver.start"](directory, slot, at)
    server, schema = __salt__["pgcluster.server"](at), _schema(at, database)
    argv = [
        f"{at['bindir']}/pg_basebackup",
        f"--pgdata={directory}/base",
        "--wal-method=none",
        "--checkpoint=fast",
        "--label=saltworks",
        "--no-password",
        f"--host={at['socket']}",
        f"--port={at['port']}",
        f"--username={at['os_user']}",
    ]
    argv += [
        f"--tablespace-mapping={place}={directory}/tablespaces/{oid}"
        for oid, place in server["tablespaces"].items()
    ]
    run = __salt__["pgcluster.run"]
    run(argv, os_user=at["os_user"], timeout=timeout, what=f"the base backup to {directory}")
    run(
        [f"{at['bindir']}/pg_verifybackup", "--no-parse-wal", f"{directory}/base"],
        os_user=at["os_user"],
        timeout=timeout,
        what=f"verifying {directory}/base",
    )
    with open(f"{directory}/base/backup_label", encoding="utf-8") as file:
        label = dict(line.split(": ", 1) for line in file.read().splitlines() if ": " in line)
    manifest = {
        "when": __salt__["pgcluster.now"](),
        "database": database,
        "system_identifier": server["system_identifier"],
        "timeline": int(label["START TIMELINE"]),
        "start_lsn": label["START WAL LOCATION"].split(" ")[0],
        "server_version": server["version"],
        "schema": schema,
        "slot": slot,
        "cluster_bytes": server["bytes"],
        "database_bytes": server["sizes"][database],
        "base_bytes": __salt__["pgcluster.tree_bytes"](f"{directory}/base"),
        "seconds": round(time.monotonic() - started, 2),
    }
    __salt__["pgcluster.write_json"](f"{directory}/manifest.json", manifest)
    return manifest


def _point(directory: str, name: str, at: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Make the restore point and wait until its whole segment is in the backup."""
    stamp = __salt__["pgcluster.stamp"]()
    point = f"saltworks_{name}_{stamp}"
    admin = __salt__["pgcluster.connection"](at)
    lsn, segment = __salt__["pgcluster.sql"](
        admin,
        f"SELECT to_json(pg_create_restore_point('{point}')::text) \\gset\n"
        "SELECT :'to_json'::json;\n"
        "SELECT to_json(pg_walfile_name(pg_switch_wal()));",
        timeout=timeout,
        what=f"the restore point {point}",
    )
    arrived(directory, segment, timeout)
    return {"point": point, "lsn": lsn, "segment": segment}


def arrived(directory: str, segment: str, timeout: float) -> None:
    """Wait until a WAL segment is in the backup, whole and flushed.

    pg_receivewal flushes a segment before it takes ``.partial`` off its name.

    :raises CommandExecutionError: when it does not come.
    """
    __salt__["pgcluster.wait_until"](
        lambda: os.path.exists(f"{directory}/wal/{segment}"),
        timeout,
        f"the WAL segment {segment} in {directory}/wal",
        "pg_receivewal does not keep up or does not run: see pgbackup.status, and the disk.",
        0.01,
    )


def _alone(at: Mapping[str, Any], database: str, quiet: bool | str, timeout: float) -> None:
    role = f"AND usename = {_quoted(quiet)} " if isinstance(quiet, str) else ""
    admin = __salt__["pgcluster.connection"](at)
    query = (
        "SELECT json_build_object('pid', pid, 'role', usename, 'from', "
        "coalesce(client_addr::text, 'local'), 'program', application_name) "
        "FROM pg_stat_activity JOIN pg_roles ON rolname = usename "
        f"WHERE datname = {_quoted(database)} {role}AND NOT rolsuper "
        "AND backend_type = 'client backend';"
    )
    left: list[Any] = []

    def gone() -> bool:
        left[:] = __salt__["pgcluster.sql"](admin, query, what="the sessions of Synapse")
        return not left

    try:
        __salt__["pgcluster.wait_until"](gone, timeout, "the database to be alone", "", 0.1)
    except CommandExecutionError:
        raise CommandExecutionError(
            f"the database {database} is still used after {timeout:g} s: "
            + ", ".join(f"{s['role']} from {s['from']} (process {s['pid']})" for s in left)
            + "; stop Synapse first, as what is written after the mark would be lost"
        ) from None


def _replication(at: Mapping[str, Any]) -> None:
    way = __salt__["pgcluster.connection"](at)
    way["params"]["replication"] = "true"
    with __salt__["pgcluster.service"](way) as environment:
        __salt__["pgcluster.run"](
            [f"{at['bindir']}/psql", "-X", "-w", "-c", "IDENTIFY_SYSTEM"],
            os_user=at["os_user"],
            what="a replication connection",
            environment=environment,
        )


def _manifest(directory: str) -> dict[str, Any]:
    manifest: dict[str, Any] | None = __salt__["pgcluster.read_json"](f"{directory}/manifest.json")
    if not manifest:
        raise CommandExecutionError(f"{directory}: there is no complete backup; run pgbackup.base")
    return manifest


def _schema(at: Mapping[str, Any], database: str) -> dict[str, Any] | None:
    there = __salt__["pgcluster.connection"](at, database)
    value: dict[str, Any] | None = __salt__["synapse_db.schema"](connection=there)
    return value


def _moved(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> bool:
    """Whether a migration has begun since: version and deltas only ever grow."""
    if not then or not now:
        return bool(then) != bool(now)
    return (then["version"], then["deltas"]) != (now["version"], now["deltas"])


def _device(path: str) -> int:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
