"""A PostgreSQL cluster moves to another machine: copied live, switched in a moment, both ways.

    copy     live: see ``pgcopy``
    ready    live: the standby is near, and a shutdown would write little
    fence    in the window, old primary: shut down cleanly, and never starts but as a standby
    promote  in the window, standby: has all that the fenced one had, becomes the primary
    unfence  the way back: the fenced one is the primary again
    follow   afterwards: the fenced one becomes a standby of the promoted one

When a promotion did not count, for the switch failed after it and was taken back:

    stand_down  at once: the promoted one is fenced again
    copy_again  afterwards: it cannot follow, for it has parted; so its files are copied anew

The fence is ``standby.signal`` in the data folder: with it PostgreSQL starts as a hot standby
only, which takes reads and no write, whoever starts it. What fence and promote did stands in
``fenced.json`` and ``promoted.json``, see :func:`pgcontent.folder`; ``pgserver.stands`` says what
follows from that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgstandby"

__salt__: dict[str, Any]

#: On the primary, for its one standby.
SLOT = "saltworks_standby"

#: A standby that is no further behind may take over: seconds of work, not of waiting.
NEAR_BYTES = 16 << 20
#: Looks in a row at which it must stream, 0.1 s and a query apart.
NEAR_LOOKS = 3

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
    :returns: ``condition`` (see ``pgcluster.condition``), ``fenced``, ``stands`` (see
        ``pgserver.stands``) and, of one that runs, ``recovery``, ``system_identifier``,
        ``receiving``, ``from``, ``slot``, ``behind``
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
    row["stands"] = __salt__["pgserver.stands"](
        not row["fenced"] or row.get("recovery") is False,
        __salt__["pgserver.recorded"](at, "fenced"),
        __salt__["pgserver.recorded"](at, "promoted"),
    )
    return row


def near(cluster: Cluster = None, seconds: float = 10) -> bool:
    """Whether this standby streams, and has replayed nearly all; waits for it.

    A receiver says that it streams before it hears that the WAL it wants is gone, and then it ends:
    so it is looked several times in a row.

    :param cluster: see ``pgcluster.locate``.
    :param seconds: the bound.
    """
    at = __salt__["pgcluster.locate"](cluster)
    looks = 0

    def is_near() -> bool:
        nonlocal looks
        row = status(at)
        behind = row.get("behind")
        near = row.get("receiving") == "streaming" and behind is not None and behind < NEAR_BYTES
        looks = looks + 1 if near else 0
        return looks >= NEAR_LOOKS

    with contextlib.suppress(CommandExecutionError):
        return bool(__salt__["pgcluster.wait_until"](is_near, seconds, "the standby", "", 0.1))
    return False


def copy_again(cluster: Cluster, upstream: Mapping[str, Any], timeout: float = 86400) -> bool:
    """A fenced cluster that has parted from the one that serves is made its standby again.

    Its data folder is emptied and filled by a copy taken live; it keeps its own settings, and the
    place of its WAL. One that was cut short is begun anew.

    :param cluster: see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the other one, without a password.
    :param timeout: as for ``pgcopy.copy``.
    :returns: whether a copy was made.
    :raises CommandExecutionError: when the link breaks, or the other one does not serve.
    """
    at = __salt__["pgcluster.locate"](cluster)
    if status(at)["stands"] != "parted":
        return False
    shows = __salt__["pgcopy.there"](at, upstream)
    known = dict(__salt__["pgserver.recorded"](at, "fenced") or {})
    if shows["system_identifier"] != known.get("system_identifier"):
        raise CommandExecutionError(
            f"{upstream['host']} has another database than this one was a copy of (system "
            f"identifier {shows['system_identifier']}, not {known.get('system_identifier')}): "
            "nothing is thrown away here. See pgstandby.status on both"
        )
    __salt__["pgcopy.refill"](at, upstream, known.pop("parted"), timeout)
    __salt__["pgserver.record"](at, "fenced", {**known, "followed": upstream["host"]})
    __salt__["pgcopy.started"](at, upstream, timeout)
    return True


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
        __salt__["pgserver.sql"](at, "CHECKPOINT;", 600)
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
    __salt__["pgserver.forget"](at, "fenced")
    _acknowledged(at)
    brief = __salt__["pgcontent.brief"](at, database)
    # Not to be followed by mistake from an earlier life as a standby.
    __salt__["pgserver.configure"](at, primary_conninfo=None, primary_slot_name=None)
    # From here on, whatever happens, it does not start as a primary.
    __salt__["pgserver.write"](at, _signal(at), "")
    __salt__["pgserver.stop"](at, "fast", 10)
    control = _control(at)
    if control["state"] != "shut down":
        raise CommandExecutionError(f"{at['data']}: is {control['state']!r} after its shutdown")
    record = {**brief, **_point(control), "moment": control["checkpoint"]}
    __salt__["pgserver.turned"](at, "fenced", record)
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
        __salt__["pgserver.turned_back"](at, "fenced")
        return False
    if fenced and __salt__["pgserver.recorded"](at, "fenced"):
        _still_fenced(at)
    recovers = condition in ("ready", "standby") and _here(at)["recovery"]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_signal(at))
    if condition != "ready" or recovers:
        # A shutdown that still waits for a standby that has gone would wait a minute more.
        __salt__["pgserver.stop"](at, "immediate" if condition == "stopping" else "fast", 20)
        __salt__["pgserver.start"](at, 60)
    __salt__["pgserver.turned_back"](at, "fenced")
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
    known = __salt__["pgserver.recorded"](at, "promoted") or {}
    done = known.get("checkpoint") == fenced["checkpoint"] and "compared" in known
    if done and not os.path.exists(_signal(at)):
        return {**known, "changed": False}
    if (stands := status(at)["stands"]) in ("parted", "loose"):
        __salt__["pgserver.must_follow"](at["data"], stands)
    here = _here(at)
    if here["system_identifier"] != fenced["system_identifier"]:
        raise CommandExecutionError(
            f"{at['data']}: is no copy of the fenced cluster (system identifier "
            f"{here['system_identifier']}, not {fenced['system_identifier']})"
        )
    if here["recovery"]:
        _replayed(at, fenced["checkpoint"])
        # From here on it parts from the other one, whatever becomes of it.
        begun = {"moment": fenced["moment"], "checkpoint": fenced["checkpoint"]}
        __salt__["pgserver.turned"](at, "promoted", begun)
        if not __salt__["pgserver.sql"](at, "SELECT to_json(pg_promote(true, 30));", 40)[0]:
            raise CommandExecutionError(
                f"{at['data']}: its promotion did not end within 30 s, and may end yet. See "
                "PostgreSQL's log on this machine, and stands and recovery in pgstandby.status"
            )
    fork = _fork(at)
    if fork["timeline"] != fenced["timeline"] or not (
        0 < _bytes(fork["lsn"]) - _bytes(fenced["checkpoint"]) < 8192
    ):
        raise CommandExecutionError(
            f"{at['data']}: parted from the fenced cluster at {fork['lsn']} of timeline "
            f"{fork['timeline']}, which is not right behind its shutdown checkpoint "
            f"({fenced['checkpoint']} of timeline {fenced['timeline']})"
        )
    __salt__["pgserver.configure"](at, primary_conninfo=None, primary_slot_name=None)

    def keep() -> None:
        __salt__["pgserver.sql"](
            at,
            f"SELECT to_json(pg_create_physical_replication_slot('{SLOT}', true)::text) WHERE NOT "
            f"EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}');",
        )

    answer: dict[str, Any] = __salt__["pgserver.succeed"](
        at, database, fenced, keep if followed else None,
        checkpoint=fenced["checkpoint"], fork=fork["lsn"],
    )  # fmt: skip
    return answer


def stand_down(
    cluster: Cluster,
    upstream: Mapping[str, Any] | None = None,
    discard: bool = False,
    taken_back: bool = False,
) -> str:
    """This cluster was promoted, and does not serve after all: it is fenced at once.

    What it had before stays written down; it has parted from the one that serves, and is to be
    copied again (:func:`copy_again`). Where nothing has come of a promotion yet, nothing will: it
    is stopped, and starts as the standby that it was (:func:`awake`).

    Exactly one of the three says why it may be stopped:

    :param cluster: see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the one that serves, which is asked whether it does.
    :param discard: by hand: one that cannot follow any more, or whose fence was taken away by
        hand; what was written to it since is lost.
    :param taken_back: not by hand: the switch that promoted it has just been taken back, and
        nobody is asked. One that serves would be stopped.
    :returns: what was done, in words; empty when there was nothing to do.
    :raises CommandExecutionError: when it is not said why, the other one does not serve, or this
        one does not stop.

    CLI Example:

    .. code-block:: bash

        salt legacy pgstandby.stand_down '{"port": 5432}' discard=True
    """
    __salt__["pgserver.must_say_why"](upstream, discard, taken_back)
    at = __salt__["pgcluster.locate"](cluster)
    stands = status(at)["stands"]
    mine = __salt__["pgserver.recorded"](at, "fenced")
    if not __salt__["pgserver.stands_down"](stands, bool(mine), discard):
        return ""
    if upstream:
        __salt__["pgcopy.there"](at, upstream)
    if stands == "undone":
        # A promotion may be under way that PostgreSQL has not come to yet. It ends with the
        # server: one that starts forgets it. Unless it was through before.
        __salt__["pgserver.stop"](at, "immediate", 20)
        stands = status(at)["stands"]
    if stands == "undone":
        __salt__["pgserver.turned_back"](at, "promoted")
        return (
            f"{at['data']}: was not promoted yet, is fenced as before, and stopped. It goes on "
            "following with orch.m3.database or its rollback"
        )
    # First of all: who died behind this finds a cluster that is not fenced, and fences it.
    if stands == "promoted":
        __salt__["pgserver.turned_back"](at, "promoted", parted=__salt__["pgcopy.own"](at))
    elif discard:
        __salt__["pgserver.record"](at, "fenced", {**mine, "parted": __salt__["pgcopy.own"](at)})
    __salt__["pgserver.write"](at, _signal(at), "")
    # What is not written out yet is thrown away anyhow.
    __salt__["pgserver.stop"](at, "immediate", 20)
    what = "was promoted, does not serve, and is fenced again" if not discard else "is fenced"
    return (
        f"{at['data']}: {what}. It cannot follow until it is copied again, which orch.m3.database "
        "or its rollback does"
    )


def follow(cluster: Cluster, upstream: Mapping[str, Any], seconds: float = 60) -> bool:
    """A fenced cluster becomes a standby of the promoted one.

    :param cluster: see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the promoted one, without a password.
    :param seconds: bound for getting near to it.
    :returns: whether something had to be done.
    :raises CommandExecutionError: when it is not fenced, or does not get there.
    """
    at = __salt__["pgcluster.locate"](cluster)
    conninfo = __salt__["pgserver.conninfo"](upstream)
    changed = awake(at)
    if _here(at)["conninfo"] != conninfo:
        # From here on it is no longer what it was when it was fenced.
        known = __salt__["pgserver.recorded"](at, "fenced") or {}
        __salt__["pgserver.record"](at, "fenced", {**known, "followed": upstream["host"]})
        __salt__["pgserver.configure"](at, primary_conninfo=conninfo, primary_slot_name=SLOT)
        changed = True
    if not near(at, seconds):
        raise CommandExecutionError(
            f"the cluster here does not follow {upstream['host']} within {seconds:g} s; see "
            f"PostgreSQL's log on this machine. Without it there is no way back: "
            f"{upstream['host']} keeps its WAL for it up to max_slot_wal_keep_size. If that is "
            "gone, have it copied again: stand_down with discard=True (docs/m3-database.md)"
        )
    return changed


def awake(cluster: Cluster) -> bool:
    """A fenced cluster runs, as the hot standby that it can only be.

    :returns: whether it was started.
    :raises CommandExecutionError: when it is not fenced.
    """
    at = __salt__["pgcluster.locate"](cluster)
    __salt__["pgserver.must_follow"](at["data"], status(at)["stands"])
    if __salt__["pgcluster.condition"](at["data"]) != "gone":
        return False
    __salt__["pgserver.start"](at, 60)
    return True


def _still_fenced(at: Mapping[str, Any]) -> dict[str, Any]:
    """The fence's record, if the cluster has not moved since."""
    record: dict[str, Any] = __salt__["pgserver.recorded"](at, "fenced") or {}
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
    position = __salt__["pgserver.sql"](
        at, "BEGIN; SELECT to_json(pg_logical_emit_message(true, 'saltworks', 'fence')); COMMIT;"
    )[0]
    query = (
        f"SELECT to_json(count(*)) FROM pg_stat_replication r JOIN pg_replication_slots s "
        f"ON s.active_pid = r.pid WHERE s.slot_name = '{SLOT}' AND r.flush_lsn >= '{position}';"
    )
    __salt__["pgcluster.wait_until"](
        lambda: __salt__["pgserver.sql"](at, query)[0],
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
    row: dict[str, Any] = __salt__["pgserver.sql"](at, _HERE)[0]
    return row


def _fork(at: Mapping[str, Any]) -> dict[str, Any]:
    """Where this cluster's timeline left its parent (last line of its history file)."""
    segment = "pg_walfile_name(pg_current_wal_lsn())"
    timeline = __salt__["pgserver.sql"](at, f"SELECT to_json(substr({segment}, 1, 8));")[0]
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


def _signal(at: Mapping[str, Any]) -> str:
    return f"{at['data']}/standby.signal"
