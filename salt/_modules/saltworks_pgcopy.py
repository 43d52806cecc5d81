"""A PostgreSQL cluster here becomes a copy of another machine's, of the same major version.

Its files are copied while the other one serves, as a standby that streams from then on
(pg_basebackup). Who may be promoted or fenced is decided in ``pgstandby``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgcopy"

__salt__: dict[str, Any]

#: On the other one, for this one.
SLOT = "saltworks_standby"

#: May not be smaller on a standby than on its primary (PostgreSQL: hot-standby.html).
LIKE_THE_PRIMARY = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
    "max_locks_per_transaction",
)  # fmt: skip

Cluster = str | Mapping[str, Any] | None


def __virtual__() -> str:
    return __virtualname__


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

        salt database pgcopy.copy 15/main '{"host": "legacy", "port": 15432, ...}'
    """
    at = __salt__["pgcluster.locate"](cluster)
    shows = there(at, upstream)
    row, system = __salt__["pgstandby.status"](at), shows.pop("system_identifier")
    if (row.get("receiving"), row.get("system_identifier")) == ("streaming", system):
        return False
    __salt__["pgserver.stop"](at, "fast", 60)
    _copied(at, upstream, timeout, "Nothing changed for anybody")
    _configured(at, upstream, _auto_conf(shows))
    started(at, upstream, timeout)
    return True


def refill(
    cluster: Cluster, upstream: Mapping[str, Any], own: Mapping[str, str], timeout: float
) -> None:
    """A fenced cluster that is not wanted any more is replaced by a copy of the other one.

    It is no less fenced by that, and keeps what was its own; it does not run yet.

    :param cluster: see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the other one, without a password.
    :param own: what :func:`own` answered.
    :param timeout: seconds for the copy; one that was cut short is begun anew.
    """
    at = __salt__["pgcluster.locate"](cluster)
    __salt__["pgserver.stop"](at, "immediate", 60)
    so = f"{upstream['host']} serves, but there is no way back yet"
    _copied(at, upstream, timeout, so, own["wal"])
    _configured(at, upstream, own["settings"])


def there(cluster: Cluster, upstream: Mapping[str, Any]) -> dict[str, str]:
    """How another machine's cluster stands that is to be copied.

    :param cluster: whose programs and account are used, see ``pgcluster.locate``.
    :param upstream: libpq's parameters of the other one, without a password.
    :returns: ``system_identifier``, and the settings of which a standby must have the same.
    :raises CommandExecutionError: when it is not a primary.
    """
    at = __salt__["pgcluster.locate"](cluster)
    shows = _ask(at, upstream, "SHOW in_hot_standby", *(f"SHOW {s}" for s in LIKE_THE_PRIMARY))
    if shows[0] != "off":
        raise CommandExecutionError(
            f"{upstream['host']} is a standby itself, perhaps of this machine: nothing is copied "
            "from there. See pgstandby.status on both"
        )
    system = _ask(at, upstream, "IDENTIFY_SYSTEM")[0].split("|")[0]
    return {**dict(zip(LIKE_THE_PRIMARY, shows[1:], strict=True)), "system_identifier": system}


def own(cluster: Cluster) -> dict[str, str]:
    """What a copy of another one would replace: settings (ALTER SYSTEM), where WAL is."""
    at = __salt__["pgcluster.locate"](cluster)
    settings, wal = f"{at['data']}/postgresql.auto.conf", f"{at['data']}/pg_wal"
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError), open(settings, encoding="utf-8") as file:
        lines = [line for line in file if not re.match(r"primary_(conninfo|slot_name)\b", line)]
    return {
        "settings": "".join(lines),
        "wal": os.path.realpath(wal) if os.path.islink(wal) else "",
    }


def started(cluster: Cluster, upstream: Mapping[str, Any], timeout: float) -> None:
    """A copy runs, and is near to the other one.

    :raises CommandExecutionError: when it does not come near in time.
    """
    at = __salt__["pgcluster.locate"](cluster)
    __salt__["pgserver.start"](at, timeout)
    if not __salt__["pgstandby.near"](at, timeout):
        raise CommandExecutionError(
            f"the copy of {upstream['host']} was made and started, but does not come near within "
            f"{timeout:g} s; see PostgreSQL's log on this machine"
        )


def _copied(
    at: Mapping[str, Any], upstream: Mapping[str, Any], timeout: float, so: str, wal: str = ""
) -> None:
    """The data folder is a copy of the other one's, which takes no write when it is started.

    :param so: how things stand when this fails.
    :param wal: folder of its WAL, where that is not in the data folder.
    """
    for folder in filter(None, (at["data"], wal)):
        _emptied(folder)
    try:
        if _ask(at, upstream, f"READ_REPLICATION_SLOT {SLOT}")[0].strip("|"):
            # Of a copy that was cut short, or of one that has parted; it holds WAL from then on.
            _ask(at, upstream, f"DROP_REPLICATION_SLOT {SLOT} WAIT", timeout=90)
        with __salt__["pgcluster.service"](__salt__["pgserver.far"](at, upstream)) as way:
            __salt__["pgcluster.run"](
                [
                    f"{at['bindir']}/pg_basebackup", "--no-password", "--wal-method=stream",
                    "--checkpoint=fast", "--create-slot", f"--slot={SLOT}",
                    # standby.signal comes with the files: it is fenced before it is verified.
                    "--write-recovery-conf", *([f"--waldir={wal}"] if wal else []),
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
            f"copying from {upstream['host']} failed: {problem}. {so}; mend that (the link, or "
            "room on this machine) and run the milestone again: it takes the half copy away and "
            "begins anew"
        ) from None


def _configured(at: Mapping[str, Any], upstream: Mapping[str, Any], settings: str) -> None:
    """A copy follows the other one when it is started.

    :param settings: further lines, as ALTER SYSTEM writes them.
    """
    way = __salt__["pgserver.conninfo"](upstream)
    lines = f"{settings}primary_conninfo = '{way}'\nprimary_slot_name = '{SLOT}'\n"
    __salt__["pgserver.write"](at, f"{at['data']}/postgresql.auto.conf", lines)
    __salt__["pgserver.write"](at, f"{at['data']}/standby.signal", "")


def _auto_conf(settings: Mapping[str, str]) -> str:
    lines = "".join(f"{key} = '{value}'\n" for key, value in sorted(settings.items()))
    return f"# ALTER SYSTEM writes here; begun by Saltworks (pgcopy.copy).\n{lines}"


def _ask(
    at: Mapping[str, Any], upstream: Mapping[str, Any], *commands: str, timeout: float = 30
) -> list[str]:
    """Answers of the other cluster to commands of the replication protocol, a line each."""
    there = __salt__["pgserver.far"](at, upstream, replication="true")
    words = [word for command in commands for word in ("-c", command)]
    with __salt__["pgcluster.service"](there) as way:
        said: str = __salt__["pgcluster.run"](
            [f"{at['bindir']}/psql", "-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", *words],
            os_user=at["os_user"],
            timeout=timeout,
            what=f"asking PostgreSQL on {upstream['host']}",
            environment=way,
        )
    return said.splitlines() or [""]


def _emptied(data: str) -> None:
    """The folder itself stays: it says whose the cluster is (pg_lsclusters)."""
    for name in os.listdir(data):
        path = f"{data}/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
