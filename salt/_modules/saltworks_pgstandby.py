"""A PostgreSQL cluster moves to another machine: copied live, switched in a moment, both ways.

    copy     live: this cluster becomes a standby of the other machine's
    ready    live: the standby is near, and a shutdown would write little
    fence    in the window, old primary: shut down cleanly, and never starts but as a standby
    promote  in the window, standby: has all that the fenced one had, becomes the primary
    unfence  the way back: the fenced one is the primary again
    follow   afterwards: the fenced one becomes a standby of the promoted one

The fence is ``standby.signal`` in the data folder: with it PostgreSQL starts as a hot standby
only, which takes reads and no write, whoever starts it. What fence and promote did stands in
``fenced.json`` and ``promoted.json``, see :func:`pgcontent.folder`.
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

__virtualname__ = "pgstandby"

__salt__: dict[str, Any]

#: On the primary, for its one standby.
SLOT = "saltworks_standby"

#: A standby that is no further behind may take over: seconds of work, not of waiting.
NEAR_BYTES = 16 << 20

#: A link that carries nothing is noticed within about 20 s, on either side.
KEEPALIVE = {
    "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20000, "connect_timeout": 10,
}  # fmt: skip

#: May not be smaller on a standby than on its primary (PostgreSQL: hot-standby.html).
LIKE_THE_PRIMARY = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip

#: What Debian's pg_ctlcluster and systemd's generator read in start.conf.
RETIRED = "# Managed by Salt (formula postgres).\ndisabled\n"

Cluster = str | Mapping[str, Any] | None

_HERE = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'receiving', (SELECT status FROM pg_stat_wal_receiver),
  'from', (SELECT sender_host FROM pg_stat_wal_receiver),
  'slot', (SELECT slot_name FROM pg_stat_wal_receiver),
  'behind', (SELECT coalesce(latest_end_lsn, flushed_lsn) - pg_last_wal_replay_lsn()
             FROM pg_stat_wal_receiver),
  'replayed', pg_last_wal_replay_lsn(),
  'conninfo', current_setting('primary_conninfo'),
  'senders', (SELECT coalesce(json_agg(json_build_object(
       'client', client_addr, 'application', application_name, 'state', state)), '[]')
     FROM pg_stat_replication));
"""


def __virtual__() -> str:
    return __virtualname__


def status(cluster: Cluster = None) -> dict[str, Any]:
    """How a cluster stands.

    :param cluster: see ``pgcluster.locate``.
    :returns: ``condition`` (see ``pgcluster.condition``), ``fenced`` and, of one that runs,
        ``recovery``, ``system_identifier``, ``receiving``, ``from``, ``slot``, ``behind``
        (bytes), ``replayed``, ``conninfo`` and ``senders``.

    CLI Example:

    .. code-block:: bash

        salt legacy pgstandby.status '{"port": 5432}'
    """
    at = __salt__["pgcluster.locate"](cluster)
    row = {
        "condition": __salt__["pgcluster.condition"](at["data"]),
        "fenced": os.path.exists(_signal(at)),
    }
    if row["condition"] in ("ready", "standby"):
        row.update(_here(at))
    return row


def near(cluster: Cluster = None, seconds: float = 10) -> bool:
    """Whether this standby streams, and has replayed nearly all; waits for it.

    :param cluster: see ``pgcluster.locate``.
    :param seconds: the bound.
    """
    at = __salt__["pgcluster.locate"](cluster)

    def is_near() -> bool:
        row = status(at)
        behind = row.get("behind")
        return row.get("receiving") == "streaming" and behind is not None and behind < NEAR_BYTES

    with contextlib.suppress(CommandExecutionError):
        return bool(__salt__["pgcluster.wait_until"](is_near, seconds, "the standby", "", 0.1))
    return False


def copy(cluster: Cluster, upstream: Mapping[str, Any], timeout: float = 86400) -> bool:
    """This cluster becomes a standby of another machine's, made of a copy taken live.

    One that streams already is left alone; whatever else is in the data folder goes, and so
    does a copy that was cut short. Only done while the other one is a primary: so the last
    primary is never thrown away.

    :param cluster: see ``pgcluster.locate``; its data folder is ours.
    :param upstream: libpq's parameters of the other one, without a password.
    :param timeout: seconds for the copy, and again for what was written meanwhile.
    :returns: whether a copy was made.
    :raises CommandExecutionError: when the link breaks, or the other one is not a primary.

    CLI Example:

    .. code-block:: bash

        salt database pgstandby.copy 15/main '{"host": "legacy", "port": 15432, ...}'
    """
    at = __salt__["pgcluster.locate"](cluster)
    shows = _ask(at, upstream, "SHOW in_hot_standby", *(f"SHOW {s}" for s in LIKE_THE_PRIMARY))
    if shows[0] != "off":
        raise CommandExecutionError(
            f"{upstream['host']} is a standby itself, perhaps of this machine: nothing is copied "
            "from there. See pgstandby.status on both"
        )
    system = _ask(at, upstream, "IDENTIFY_SYSTEM")[0].split("|")[0]
    row = status(at)
    if (row.get("receiving"), row.get("system_identifier")) == ("streaming", system):
        return False
    _stop(at, "fast", 60)
    _emptied(at["data"])
    if _ask(at, upstream, f"READ_REPLICATION_SLOT {SLOT}")[0].strip("|"):
        # Of a copy that was cut short; it holds WAL from then on.
        _ask(at, upstream, f"DROP_REPLICATION_SLOT {SLOT} WAIT", timeout=90)
    _copied(at, upstream, timeout)
    settings = dict(zip(LIKE_THE_PRIMARY, shows[1:], strict=True))
    settings.update(primary_conninfo=_conninfo(upstream), primary_slot_name=SLOT)
    _write(at, f"{at['data']}/postgresql.auto.conf", _auto_conf(settings))
    _write(at, _signal(at), "")
    _start(at, timeout)
    if not near(at, timeout):
        raise CommandExecutionError(
            f"the copy of {upstream['host']} was made and started, but does not come near within "
            f"{timeout:g} s; see PostgreSQL's log on this machine"
        )
    return True


def provide(cluster: Cluster, database: str, owner: str, password: str) -> list[str]:
    """This cluster runs as configured, and has an empty database as Synapse wants it.

    :param cluster: see ``pgcluster.locate``; nobody uses it yet.
    :param database: its name; one that is there stays.
    :param owner: the role that owns it.
    :param password: of the role.
    :returns: what was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    found = f"SELECT to_json(count(*)) FROM pg_database WHERE datname = '{database}';"
    running = __salt__["pgcluster.condition"](at["data"]) != "gone"
    new = not running or not _sql(at, found)[0]
    if new:
        # Debian started it with settings of its own.
        _stop(at, "fast", 60)
        _start(at, 60)
    role = {owner: {"password": password, "made": True}}
    changed = [f"role {name}" for name in __salt__["pgadmit.give"](at, role)]
    if new and not _sql(at, found)[0]:
        _sql(
            at,
            f'CREATE DATABASE "{database}" OWNER "{owner}" TEMPLATE template0 ENCODING '
            "'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';",
        )
        changed.append(f"database {database}")
    return changed


def ready(cluster: Cluster, standby: bool) -> dict[str, Any]:
    """Whether a switch may begin, at either end; the last word before people wait.

    The primary writes out what is dirty now, so that its shutdown has little left to write.

    :param cluster: see ``pgcluster.locate``.
    :param standby: this end is the standby.
    :returns: see :func:`status`.
    :raises CommandExecutionError: when it may not, with what to do.
    """
    at = __salt__["pgcluster.locate"](cluster)
    row = status(at)
    if standby:
        if not near(at, 10):
            raise CommandExecutionError(
                f"the standby does not stream, or is far behind ({row}); see PostgreSQL's log on "
                "this machine, then run the milestone again"
            )
    elif row["condition"] != "ready" or row["recovery"]:
        raise CommandExecutionError(f"the cluster is no primary that runs ({row})")
    else:
        _sql(at, "CHECKPOINT;", 600)
    return row


def fence(cluster: Cluster, database: str) -> dict[str, Any]:
    """Shut this primary down cleanly, so that it never takes a write again.

    Its standby has confirmed to be there before, and has got all WAL when this returns.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :returns: ``system_identifier``, ``timeline`` and ``checkpoint`` (of its shutdown),
        ``fingerprint`` and ``sequences`` (see ``pgcontent.brief``), ``changed``.
    :raises CommandExecutionError: when the standby is not there, or it does not stop.
    """
    at = __salt__["pgcluster.locate"](cluster)
    if os.path.exists(_signal(at)):
        record = _still_fenced(at)
        return {**record, "changed": False}
    _forget(at, "fenced", "promoted")
    _acknowledged(at)
    brief = __salt__["pgcontent.brief"](at, database)
    # Not to be followed by mistake from an earlier life as a standby.
    _set(at, primary_conninfo=None, primary_slot_name=None)
    # From here on, whatever happens, it does not start as a primary.
    _write(at, _signal(at), "")
    _stop(at, "fast", 10)
    control = _control(at)
    if control["state"] != "shut down":
        raise CommandExecutionError(f"{at['data']}: is {control['state']!r} after its shutdown")
    record = {**brief, **_point(control)}
    _record(at, "fenced", record)
    return {**record, "changed": True}


def unfence(cluster: Cluster) -> bool:
    """A fenced cluster, or one whose fence failed, is the primary again.

    :param cluster: see ``pgcluster.locate``.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when it has followed another one since: it holds what was
        written there, and the way back is a switch like the way there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    fenced = os.path.exists(_signal(at))
    condition = __salt__["pgcluster.condition"](at["data"])
    if not fenced and condition == "ready":
        return False
    if fenced and _read(at, "fenced"):
        _still_fenced(at)
    recovers = condition in ("ready", "standby") and _here(at)["recovery"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_signal(at))
    if condition != "ready" or recovers:
        # A shutdown that still waits for a standby that has gone would wait a minute more.
        _stop(at, "immediate" if condition == "stopping" else "fast", 20)
        _start(at, 60)
    return True


def promote(
    cluster: Cluster, database: str, fenced: Mapping[str, Any], followed: bool
) -> dict[str, Any]:
    """This standby becomes the primary, if it has exactly what the fenced one had.

    :param cluster: see ``pgcluster.locate``.
    :param database: Synapse's database.
    :param fenced: what :func:`fence` answered on the other machine.
    :param followed: keep WAL for the other one from now on, and hold this moment's content
        for a full comparison (see ``pgcontent.measure``).
    :returns: ``checkpoint``, ``fork`` (where the timelines part), ``compared`` (how many
        measures), ``changed``.
    :raises CommandExecutionError: when it is not the other one's equal.
    """
    at = __salt__["pgcluster.locate"](cluster)
    known = _read(at, "promoted") or {}
    if known.get("checkpoint") == fenced["checkpoint"] and not os.path.exists(_signal(at)):
        return {**known, "changed": False}
    here = _here(at)
    if here["system_identifier"] != fenced["system_identifier"]:
        raise CommandExecutionError(
            f"{at['data']}: is no copy of the fenced cluster (system identifier "
            f"{here['system_identifier']}, not {fenced['system_identifier']})"
        )
    if here["recovery"]:
        _replayed(at, fenced["checkpoint"])
        _sql(at, "SELECT to_json(pg_promote(true, 30));", 40)
    fork = _fork(at)
    if fork["timeline"] != fenced["timeline"] or not (
        0 < _bytes(fork["lsn"]) - _bytes(fenced["checkpoint"]) < 8192
    ):
        raise CommandExecutionError(
            f"{at['data']}: parted from the fenced cluster at {fork['lsn']} of timeline "
            f"{fork['timeline']}, which is not right behind its shutdown checkpoint "
            f"({fenced['checkpoint']} of timeline {fenced['timeline']})"
        )
    _set(at, primary_conninfo=None, primary_slot_name=None)
    brief = __salt__["pgcontent.brief"](at, database, only=list(fenced["fingerprint"]))
    wrong = __salt__["pgcontent.differences"](fenced, brief)
    if wrong:
        raise CommandExecutionError(f"{database}: is not what it was: {'; '.join(wrong)}")
    record = {
        "checkpoint": fenced["checkpoint"],
        "fork": fork["lsn"],
        "compared": len(brief["fingerprint"]) + len(brief["sequences"]),
    }
    if followed:
        _sql(
            at,
            f"SELECT to_json(pg_create_physical_replication_slot('{SLOT}', true)::text) WHERE NOT "
            f"EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}');",
        )
        __salt__["pgcontent.hold"](at, database, fenced["checkpoint"])
    _forget(at, "fenced")
    _record(at, "promoted", record)
    return {**record, "changed": True}


def follow(cluster: Cluster, upstream: Mapping[str, Any], seconds: float = 60) -> bool:
    """A fenced cluster becomes a standby of the promoted one.

    :param cluster: see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the promoted one, without a password.
    :param seconds: bound for getting near to it.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when it is not fenced, or does not get there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    conninfo = _conninfo(upstream)
    changed = awake(at)
    if _here(at)["conninfo"] != conninfo:
        # From here on it is no longer what it was when it was fenced.
        _record(at, "fenced", {**(_read(at, "fenced") or {}), "followed": upstream["host"]})
        _set(at, primary_conninfo=conninfo, primary_slot_name=SLOT)
        changed = True
    if not near(at, seconds):
        raise CommandExecutionError(
            f"the cluster here does not follow {upstream['host']} within {seconds:g} s; see "
            f"PostgreSQL's log on this machine. Without it there is no way back: "
            f"{upstream['host']} keeps its WAL for it up to max_slot_wal_keep_size"
        )
    return changed


def awake(cluster: Cluster) -> bool:
    """A fenced cluster runs, as the hot standby that it can only be.

    :returns: whether it was started.
    :raises CommandExecutionError: when it is not fenced.
    """
    at = __salt__["pgcluster.locate"](cluster)
    if not os.path.exists(_signal(at)):
        raise CommandExecutionError(
            f"{at['data']}: is not fenced (no {os.path.basename(_signal(at))} there), so it may "
            "take writes that nobody sees. Stop it, see pgstandby.status on both machines"
        )
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        return False
    _start(at, 60)
    return True


def retire(cluster: Cluster, test: bool = False) -> list[str]:
    """A cluster of Debian's runs no more, and whoever starts it is refused; its data stays.

    :param cluster: see ``pgcluster.locate``; one that is not there is retired.
    :param test: only say what would be done.
    :returns: what was changed.
    """
    try:
        at = __salt__["pgcluster.locate"](cluster)
    except CommandExecutionError:
        return []
    path = f"{at['config']}/start.conf"
    changed = []
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        changed.append(at["data"])
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        if file.read() != RETIRED:
            changed.append(path)
    # It starts whatever else is a cluster here, and counts as running by itself.
    alone = not [row for row in __salt__["pgcluster.others"](at) if row["status"] != "down"]
    if alone and __salt__["service.status"]("postgresql"):
        changed.append("postgresql.service")
    if changed and not test:
        _stop(at, "fast", 60)
        _write(at, path, RETIRED)
        if alone:
            __salt__["pgcluster.run"](["systemctl", "disable", "--now", "postgresql"], timeout=60)
    return changed


def _still_fenced(at: Mapping[str, Any]) -> dict[str, Any]:
    """The fence's record, if the cluster has not moved since."""
    record: dict[str, Any] = _read(at, "fenced") or {}
    now = _point(_control(at))
    if record.get("followed") or {key: record.get(key) for key in now} != now:
        raise CommandExecutionError(
            f"{at['data']}: has followed another cluster since it was fenced ({now}, fenced "
            f"{record.get('checkpoint', 'never')}): it holds what was written there. Run the "
            "milestone again, or its rollback"
        )
    return record


def _acknowledged(at: Mapping[str, Any]) -> None:
    """The standby confirms a position of just now: it is there, and a shutdown ends at once."""
    position = _sql(
        at, "BEGIN; SELECT to_json(pg_logical_emit_message(true, 'saltworks', 'fence')); COMMIT;"
    )[0]
    query = (
        f"SELECT to_json(count(*)) FROM pg_stat_replication r JOIN pg_replication_slots s "
        f"ON s.active_pid = r.pid WHERE s.slot_name = '{SLOT}' AND r.flush_lsn >= '{position}';"
    )
    __salt__["pgcluster.wait_until"](
        lambda: _sql(at, query)[0],
        4,
        "the standby to confirm",
        "It does not stream: see PostgreSQL's log there, and whether that machine is up",
        0.05,
    )


def _replayed(at: Mapping[str, Any], checkpoint: str) -> None:
    __salt__["pgcluster.wait_until"](
        lambda: _bytes(_here(at)["replayed"]) > _bytes(checkpoint),
        10,
        f"the fenced cluster's last record ({checkpoint}) to be replayed",
        f"This standby has {_here(at)['replayed']} only: its stream was cut before",
        0.05,
    )


def _here(at: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = _sql(at, _HERE)[0]
    return row


def _fork(at: Mapping[str, Any]) -> dict[str, Any]:
    """Where this cluster's timeline left its parent (last line of its history file)."""
    timeline = _sql(at, "SELECT to_json(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8));")[0]
    path = f"{at['data']}/pg_wal/{timeline}.history"
    try:
        with open(path, encoding="utf-8") as file:
            parent, lsn = file.read().strip().splitlines()[-1].split("\t")[:2]
    except FileNotFoundError:
        raise CommandExecutionError(f"{at['data']}: was never promoted (no {path})") from None
    return {"timeline": int(parent), "lsn": lsn}


def _control(at: Mapping[str, Any]) -> dict[str, str]:
    """What pg_controldata says that is asked here."""
    text = __salt__["pgcluster.run"](
        [f"{at['bindir']}/pg_controldata", "-D", at["data"]],
        os_user=at["os_user"],
        what=f"the control data of {at['data']}",
    )
    cells = (line.partition(":") for line in text.splitlines())
    rows = {key: value.strip() for key, _, value in cells}
    return {
        "state": rows["Database cluster state"],
        "system_identifier": rows["Database system identifier"],
        "checkpoint": rows["Latest checkpoint location"],
        "timeline": rows["Latest checkpoint's TimeLineID"],
    }


def _point(control: Mapping[str, str]) -> dict[str, Any]:
    return {
        "system_identifier": control["system_identifier"],
        "checkpoint": control["checkpoint"],
        "timeline": int(control["timeline"]),
    }


def _bytes(lsn: str | None) -> int:
    high, low = (lsn or "0/0").split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _conninfo(upstream: Mapping[str, Any]) -> str:
    rows = {**upstream, "application_name": "saltworks", **KEEPALIVE}
    for key, value in rows.items():
        if not re.fullmatch(r"[A-Za-z0-9_./:-]+", str(value)):
            raise CommandExecutionError(f"{key}={value!r} cannot stand in primary_conninfo")
    return " ".join(f"{key}={value}" for key, value in rows.items())


def _auto_conf(settings: Mapping[str, str]) -> str:
    lines = "".join(f"{key} = '{value}'\n" for key, value in sorted(settings.items()))
    return f"# ALTER SYSTEM writes here; begun by Saltworks (pgstandby.copy).\n{lines}"


def _ask(
    at: Mapping[str, Any], upstream: Mapping[str, Any], *commands: str, timeout: float = 30
) -> list[str]:
    """Answers of the other cluster to commands of the replication protocol, a line each."""
    params = {**upstream, **KEEPALIVE, "replication": "true"}
    words = [word for command in commands for word in ("-c", command)]
    with __salt__["pgcluster.service"]({"os_user": at["os_user"], "params": params}) as way:
        said: str = __salt__["pgcluster.run"](
            [f"{at['bindir']}/psql", "-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", *words],
            os_user=at["os_user"],
            timeout=timeout,
            what=f"asking PostgreSQL on {upstream['host']}",
            environment=way,
        )
    return said.splitlines() or [""]


def _copied(at: Mapping[str, Any], upstream: Mapping[str, Any], timeout: float) -> None:
    params = {**upstream, **KEEPALIVE}
    try:
        with __salt__["pgcluster.service"]({"os_user": at["os_user"], "params": params}) as way:
            __salt__["pgcluster.run"](
                [
                    f"{at['bindir']}/pg_basebackup", "--no-password", "--wal-method=stream",
                    "--checkpoint=fast", "--create-slot", f"--slot={SLOT}",
                    f"--pgdata={at['data']}", "--dbname=service=saltworks",
                ],
                os_user=at["os_user"], timeout=timeout, what="the copy", environment=way,
            )  # fmt: skip
        __salt__["pgcluster.run"](
            [f"{at['bindir']}/pg_verifybackup", "--quiet", at["data"]],
            os_user=at["os_user"],
            timeout=timeout,
            what="verifying the copy",
        )
    except CommandExecutionError as problem:
        raise CommandExecutionError(
            f"copying from {upstream['host']} failed: {problem}. Nothing changed for anybody; "
            "mend that (the link, or room on this machine) and run the milestone again: it "
            "takes the half copy away and begins anew"
        ) from None


def _emptied(data: str) -> None:
    """The folder itself stays: it says whose the cluster is (pg_lsclusters)."""
    for name in os.listdir(data):
        path = f"{data}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _start(at: Mapping[str, Any], seconds: float) -> None:
    what = f"starting PostgreSQL in {at['data']}"
    if "unit" in at:
        # A unit that was stopped from outside systemd counts as failed.
        __salt__["pgcluster.run"](["systemctl", "reset-failed", at["unit"]], what=what)
        __salt__["pgcluster.run"](["systemctl", "start", at["unit"]], timeout=seconds, what=what)
    else:
        log, config = f"{at['socket']}/log", f"-c config_file={at['config']}/postgresql.conf"
        __salt__["pgcluster.run"](
            [f"{at['bindir']}/pg_ctl", "-D", at["data"], "-l", log, "-o", config, "-w", "start"],
            os_user=at["os_user"],
            timeout=seconds,
            what=what,
        )
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgcluster.condition"](at["data"]) in ("ready", "standby"),
        seconds,
        f"PostgreSQL in {at['data']} to take connections",
        "See its log.",
    )


def _stop(at: Mapping[str, Any], mode: str, seconds: float) -> None:
    if __salt__["pgcluster.condition"](at["data"]) == "gone":
        return
    # Not by systemd, which would wait for an hour: what it is told must come true or fail.
    how = ["-m", mode, "-w", "-t", str(int(seconds)), "stop"]
    __salt__["pgcluster.run"](
        [f"{at['bindir']}/pg_ctl", "-D", at["data"], *how],
        os_user=at["os_user"],
        timeout=seconds + 5,
        what=f"stopping PostgreSQL in {at['data']}",
    )
    if "unit" in at:
        __salt__["pgcluster.wait_until"](
            lambda: not __salt__["service.status"](at["unit"]),
            10,
            f"{at['unit']} to have ended",
            f"See systemctl status {at['unit']}.",
        )


def _set(at: Mapping[str, Any], **settings: str | None) -> None:
    """ALTER SYSTEM, and reload."""
    lines = [
        f"ALTER SYSTEM RESET {key};" if value is None else f"ALTER SYSTEM SET {key} = '{value}';"
        for key, value in settings.items()
    ]
    _sql(at, "\n".join([*lines, "SELECT to_json(pg_reload_conf());"]))


def _sql(at: Mapping[str, Any], script: str, timeout: float = 20) -> list[Any]:
    there = __salt__["pgcluster.connection"](at)
    rows: list[Any] = __salt__["pgcluster.sql"](there, script, timeout, script.strip()[:60])
    return rows


def _signal(at: Mapping[str, Any]) -> str:
    return f"{at['data']}/standby.signal"


def _write(at: Mapping[str, Any], path: str, text: str) -> None:
    """A file of the cluster's own, as its account, synced: the fence must outlive a power cut."""
    __salt__["pgcluster.run"](
        ["sh", "-c", 'umask 077; cat > "$0" && sync "$0" "$(dirname "$0")"', path],
        os_user=at["os_user"],
        stdin=text,
        what=path,
    )


def _record(at: Mapping[str, Any], name: str, value: Mapping[str, Any]) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    __salt__["pgcluster.write_json"](
        f"{__salt__['pgcontent.folder'](at)}/{name}.json", {**value, "when": when}
    )


def _read(at: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    path = f"{__salt__['pgcontent.folder'](at)}/{name}.json"
    value: dict[str, Any] | None = __salt__["pgcluster.read_json"](path)
    return value


def _forget(at: Mapping[str, Any], *names: str) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{__salt__['pgcontent.folder'](at)}/{name}.json")
