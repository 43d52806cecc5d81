"""PostgreSQL of this machine as a member of Patroni's cluster: taken over, set, given back.

What is written in etcd is written there directly: before Patroni runs for the first time, while it
does, and after it has gone, in one way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "patroni_machine"

__salt__: dict[str, Any]

CONFIG = "/etc/patroni/config.yml"

#: What pg_ctlcluster and systemd's generator read in start.conf: they start it no more.
STARTS_NOT = "# Managed by Salt (formula patroni): Patroni starts and stops it.\ndisabled\n"

#: As formula postgres has it.
STARTS = "# Managed by Salt (formula postgres).\nauto\n"

#: Debian's unit lets go of the server without stopping it, and of all that it may start later.
LETS_GO = (
    "# Managed by Salt (formula patroni): Patroni starts and stops the server.\n"
    "[Service]\nExecStart=\nExecStart=/bin/false\nExecStop=\nKillMode=none\nSendSIGKILL=no\n"
)

#: What a role needs to rewind a server by (PostgreSQL: pg_rewind, notes).
REWINDS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)

Cluster = str | Mapping[str, Any]


def __virtual__() -> str:
    return __virtualname__


def found(cluster: Cluster, config: str = CONFIG) -> dict[str, Any]:
    """What :func:`settle` decides by.

    :param cluster: see ``pgcluster.locate``.
    :param config: Patroni's own configuration file.
    :returns: ``initialized`` and ``own`` (system identifiers), ``following``, ``filled`` (why it
        may not be removed), ``condition`` (see ``pgcluster.condition``).
    :raises CommandExecutionError: when etcd does not answer.
    """
    at = __salt__["pgcluster.locate"](cluster)
    control = _control(at)
    return {
        "initialized": _read(config, "initialize")["text"],
        "own": control.get("Database system identifier", ""),
        "following": os.path.exists(f"{at['data']}/standby.signal"),
        "filled": __salt__["patroni_rules.files_of_users"](*_listed(at["data"])),
        "condition": __salt__["pgcluster.condition"](at["data"]),
    }


def settle(
    cluster: Cluster, adopts: bool, config: str = CONFIG, test: bool = False
) -> dict[str, Any]:
    """Patroni may take over what is here: Debian's unit lets go of it, or an empty one is removed.

    :param cluster: see ``pgcluster.locate``.
    :param adopts: the cluster is made of this machine's server, if there is none yet.
    :param config: Patroni's own configuration file.
    :param test: only say what would be done.
    :returns: ``what`` (see ``patroni_rules.settle``), ``why``, ``changed``: things that were
        changed, or would be.
    :raises CommandExecutionError: when it is refused; nothing was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    facts = found(at, config)
    what, why = __salt__["patroni_rules.settle"](
        facts["initialized"], facts["own"], adopts, facts["following"], facts["filled"]
    )
    if what == "refuse":
        raise CommandExecutionError(f"{at['data']} does not become a member: {why}")
    changed = _let_go(at, test)
    if what == "clear":
        changed.append(at["data"])
        if not test:
            __salt__["pgserver.stop"]({k: at[k] for k in at if k != "unit"}, "immediate", 30)
            for entry in os.scandir(at["data"]):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
    return {"what": what, "why": why, "changed": changed}


def attune(
    cluster: Cluster,
    durability: str,
    maximum_lag: int,
    slots: Sequence[str],
    adopts: bool,
    config: str = CONFIG,
    test: bool = False,
) -> dict[str, Any]:
    """Patroni's cluster is set in etcd as it should be; members take it up in their next round.

    :param cluster: see ``pgcluster.locate``: where there is nothing set yet, its server runs.
    :param durability: see ``patroni_rules.DURABILITY``.
    :param maximum_lag: bytes.
    :param slots: replication slots that are not Patroni's, and stay.
    :param adopts: the cluster is made of this machine's server, if there is none yet.
    :param config: Patroni's own configuration file.
    :param test: only say what would be done.
    :returns: setting → ``old``, ``new``.
    :raises CommandExecutionError: when etcd does not answer, or somebody else changes it as well.
    """
    value = _read(config, "config")
    now: dict[str, Any] = json.loads(value["text"]) if value["text"] else {}
    if not now and not adopts:
        raise CommandExecutionError(
            "Patroni's cluster is not set up yet: apply this to the machine with adopts: true first"
        )
    try:
        carried = __salt__["patroni_rules.carried"](now, {} if now else _settings(cluster))
        wanted = __salt__["patroni_rules.dynamic"](durability, maximum_lag, carried, slots)
    except ValueError as problem:
        raise CommandExecutionError(str(problem)) from None
    then = __salt__["patroni_rules.merged"](now, wanted)
    changes: dict[str, Any] = __salt__["patroni_rules.differences"](now, then)
    if changes and not test:
        text = json.dumps(then, separators=(",", ":"))
        at, prefix = _keys(config)
        written = __salt__["etcd_keys.swap"](at, f"{prefix}config", text, value["revision"])
        # Another machine's state run, at the same moment, may have written just that.
        if not written and json.loads(_read(config, "config")["text"] or "{}") != then:
            raise CommandExecutionError(
                "Patroni's configuration in etcd was changed by somebody else just now; look at it "
                "(patronictl show-config), and apply this again"
            )
    return changes


def roles(
    cluster: Cluster,
    given: Mapping[str, Mapping[str, Any]],
    rewinds: str,
    reads_by: str = "",
    test: bool = False,
) -> list[str]:
    """Roles by which members copy and rewind each other.

    Nothing is to do on a standby, nor where no server runs: Patroni has it then, and starts it.

    :param cluster: see ``pgcluster.locate``.
    :param given: role → ``password`` and ``replication``, see ``pgadmit.give``.
    :param rewinds: the role that reads the files of a data folder.
    :param reads_by: a role that sees everybody's statistics, as reads on standbys need it.
    :param test: only say what would be done.
    :returns: what was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    sql = __salt__["pgserver.sql"]
    stands = __salt__["pgcluster.condition"](at["data"])
    if stands == "gone" or sql(at, "SELECT to_json(pg_is_in_recovery());")[0]:
        return []
    # The lines of pg_hba.conf that it misses are others'.
    missing = __salt__["pgadmit.missing"](at, given, [])
    changed = [f"role {name}" for name in given if f"role {name}" in missing]
    if changed and not test:
        __salt__["pgadmit.give"](at, given)
    # One that is not there yet has none of it.
    new = test and f"role {rewinds}" in changed
    may = f"SELECT to_json(has_function_privilege('{rewinds}', '%s', 'EXECUTE'));"
    barred = [what for what in REWINDS if new or not sql(at, may % what)[0]]
    if barred:
        changed.append(f"{rewinds} reads data folders")
        if not test:
            grants = "".join(
                f'GRANT EXECUTE ON FUNCTION pg_catalog.{what} TO "{rewinds}";\n' for what in barred
            )
            sql(at, grants)
    if reads_by and not sql(
        at, f"SELECT to_json(pg_has_role('{reads_by}', 'pg_read_all_stats', 'MEMBER'));"
    )[0]:
        changed.append(f"{reads_by} sees statistics")
        if not test:
            sql(at, f'GRANT pg_read_all_stats TO "{reads_by}";')
    return changed


def retire(cluster: Cluster, config: str = CONFIG, test: bool = False) -> list[str]:
    """Patroni no longer has this machine's server; its data stays.

    The last member's is given back to Debian's unit, which restarts it once, and etcd knows no such
    cluster any more. A standby's stops, and does not start again.

    :param cluster: see ``pgcluster.locate``.
    :param config: Patroni's own configuration file; without it there is nothing to do.
    :param test: only say what would be done.
    :returns: what was changed.
    :raises CommandExecutionError: when this is the leader, and others still follow it; when it can
        not be told who leads. Nothing was changed.
    """
    if not os.path.exists(config):
        return []
    at = __salt__["pgcluster.locate"](cluster)
    name = __salt__["patroni.read_config"](config)["name"]
    runs = bool(__salt__["service.status"]("patroni"))
    keys, prefix = _keys(config)
    below = __salt__["etcd_keys.below"](keys, f"{prefix}members/")
    members = [key.rpartition("/")[2] for key in below]
    leader = __salt__["etcd_keys.read"](keys, f"{prefix}leader")["text"]
    following = os.path.exists(f"{at['data']}/standby.signal")
    leads = __salt__["patroni_rules.leads"](name, leader, runs, following)
    others = sorted({*members} - {name})
    if leads and others:
        raise CommandExecutionError(
            f"{name} leads, and {', '.join(others)} follow: retire these first, or call "
            "patroni.switchover"
        )
    changed = ["patroni.service", at["data"]]
    if test:
        return changed
    if leads and runs:
        # Paused, Patroni ends without stopping PostgreSQL.
        __salt__["patroni.pause"](config=config)
    _systemctl("disable", "--now", "patroni")
    if leads:
        __salt__["etcd_keys.remove"](keys, prefix)
    give_back(at, leads)
    return changed


def give_back(at: Mapping[str, Any], starts: bool) -> None:
    """PostgreSQL's configuration is Debian's again, and so is who starts it.

    :param at: a complete cluster, see ``pgcluster.locate``.
    :param starts: it runs on, after one restart; else it stops and stays.
    """
    base, main = f"{at['config']}/postgresql.base.conf", f"{at['config']}/postgresql.conf"
    __salt__["pgserver.stop"]({k: at[k] for k in at if k != "unit"}, "fast", 60)
    if os.path.exists(base):
        os.replace(base, main)
    for name in os.listdir(at["config"]):
        if name.endswith(".conf.backup"):
            os.unlink(f"{at['config']}/{name}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{at['data']}/patroni.dynamic.json")
    if "unit" in at:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_drop_in(at))
        _systemctl("daemon-reload")
    if starts:
        __salt__["pgserver.write"](at, f"{at['config']}/start.conf", STARTS)
        __salt__["pgserver.start"](at, 60)
        if "unit" in at:
            _systemctl("enable", "postgresql")


def forget(config: str = CONFIG, test: bool = False) -> list[str]:
    """All keys of a cluster are removed from etcd that no member has any more.

    :param config: Patroni's own configuration file.
    :param test: only say what would be done.
    :returns: the keys.
    :raises CommandExecutionError: while a member is still there.
    """
    at, prefix = _keys(config)
    keys = sorted(__salt__["etcd_keys.below"](at, prefix))
    members = [key.rpartition("/")[2] for key in keys if key.startswith(f"{prefix}members/")]
    if members:
        raise CommandExecutionError(
            f"Patroni's cluster {prefix} still has the members {', '.join(members)}: retire "
            "them first (state patroni.absent), or wait until their keys have run out (12 s)"
        )
    if keys and not test:
        __salt__["etcd_keys.remove"](at, prefix)
    return keys


def go_back(config: str = CONFIG) -> None:
    """etcd forgets how far the last leader was.

    A member that lacks more than ``maximum_lag_on_failover`` of that does not lead (Patroni:
    replication modes), and all do, once the one that leads next was put back to a time.

    :param config: Patroni's own configuration file.
    :raises CommandExecutionError: when etcd does not answer.
    """
    at, prefix = _keys(config)
    __salt__["etcd_keys.remove"](at, f"{prefix}status")


def _let_go(at: Mapping[str, Any], test: bool) -> list[str]:
    """Debian neither starts nor stops the server any more; one that runs goes on."""
    if "unit" not in at:
        return []
    changed = []
    for path, text in (
        (f"{at['config']}/start.conf", STARTS_NOT),
        (_drop_in(at), LETS_GO),
    ):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            if file.read() == text:
                continue
        changed.append(path)
        if test:
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    active = bool(__salt__["service.status"](at["unit"]))
    if active:
        changed.append(at["unit"])
    if changed and not test:
        _systemctl("daemon-reload")
        if active:
            _systemctl("stop", at["unit"])
        if not [row for row in __salt__["pgcluster.others"](at) if row["status"] != "down"]:
            _systemctl("disable", "--now", "postgresql")
    return changed


def _drop_in(at: Mapping[str, Any]) -> str:
    return f"/etc/systemd/system/{at['unit']}.service.d/saltworks-patroni.conf"


def _systemctl(*words: str) -> None:
    __salt__["pgcluster.run"](["systemctl", *words], timeout=90, what=f"systemctl {words[0]}")


def _control(at: Mapping[str, Any]) -> dict[str, str]:
    """What pg_controldata says; nothing where there is no data."""
    if not os.path.exists(f"{at['data']}/global/pg_control"):
        return {}
    text = __salt__["pgcluster.run"](
        [f"{at['bindir']}/pg_controldata", at["data"]], os_user=at["os_user"]
    )
    return dict(re.findall(r"^([^:\n]+):\s+(.*)$", text, re.M))


def _listed(data: str) -> tuple[dict[str, list[str]], list[str]]:
    """Files of each database, and tablespaces."""
    try:
        base = {
            entry.name: os.listdir(entry.path) for entry in os.scandir(f"{data}/base")
            if entry.is_dir()
        }
        return base, os.listdir(f"{data}/pg_tblspc")
    except FileNotFoundError:
        return {}, []


def _settings(cluster: Cluster) -> dict[str, Any]:
    names = ", ".join(f"'{name}'" for name in __salt__["patroni_rules.names"]())
    at = __salt__["pgcluster.locate"](cluster)
    rows = __salt__["pgserver.sql"](
        at,
        "SELECT json_build_array(name, setting) FROM pg_settings "
        f"WHERE name IN ({names}) ORDER BY name;",
    )
    return {name: int(value) if value.isdigit() else value for name, value in rows}


def _read(config: str, key: str) -> dict[str, Any]:
    at, prefix = _keys(config)
    found: dict[str, Any] = __salt__["etcd_keys.read"](at, f"{prefix}{key}")
    return found


def _keys(config: str) -> tuple[dict[str, Any], str]:
    """etcd as Patroni reaches it (see ``etcd_keys``), and the prefix of the cluster's keys."""
    own = __salt__["patroni.read_config"](config)
    to = own["etcd3"]
    at = {"hosts": to["hosts"], "crt": to["cert"], "key": to["key"], "authority": to["cacert"]}
    return at, f"/{own['namespace'].strip('/')}/{own['scope']}/"
