"""Patroni's cluster, asked and told by the REST API of its members.

Paths: https://patroni.readthedocs.io/en/latest/rest_api.html. Whatever changes something needs the
certificate of a member, which is used for everything.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import salt.utils.files
import salt.utils.yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "patroni"

__salt__: dict[str, Any]

CONFIG = "/etc/patroni/config.yml"

#: A standby that is so near takes over without delay: a segment of WAL.
NEAR_BYTES = 16 << 20

LOOK_SECONDS = 0.2

#: Of each of the four questions of :func:`status`, in seconds: who asks many machines waits for 15.
SOON = 3

_HERE = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'started', extract(epoch FROM pg_postmaster_start_time()),
  'pending', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings
              WHERE pending_restart),
  'replay_seconds', CASE WHEN NOT pg_is_in_recovery() THEN 0
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END,
  'receiving', (SELECT status FROM pg_stat_wal_receiver),
  'slots', (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'active', active,
      'wal_status', wal_status, 'safe_bytes', safe_wal_size,
      'kept_bytes', CASE WHEN NOT pg_is_in_recovery()
        THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END)
      ORDER BY slot_name), '[]') FROM pg_replication_slots),
  'senders', (SELECT coalesce(json_agg(json_build_object('name', application_name,
      'state', state, 'sync_state', sync_state,
      'replay_lag', coalesce(extract(epoch FROM replay_lag), 0),
      'replay_bytes', CASE WHEN NOT pg_is_in_recovery()
        THEN pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint END)
      ORDER BY application_name), '[]') FROM pg_stat_replication));
"""


def __virtual__() -> str:
    return __virtualname__


def status(config: str = CONFIG) -> dict[str, Any]:
    """How the cluster stands, as this member sees it.

    While etcd does not answer Patroni can say nothing of the others: then it is what this member
    knows of itself.

    :param config: Patroni's own configuration file.
    :returns: see ``patroni_rules.joined``. ``here`` has what PostgreSQL of this machine says,
        or ``error``: ``slots`` with the WAL that each keeps, ``senders`` (on the leader),
        ``replay_seconds``, ``receiving``, ``pending`` (settings that wait for a restart); and
        ``disk``: ``free`` and ``size`` in bytes, where its data or its WAL has less.
    :raises CommandExecutionError: when Patroni does not answer here.

    CLI Example:

    .. code-block:: bash

        salt database1 patroni.status
    """
    own = read_config(config)
    here: dict[str, Any] = {"name": own["name"]}
    try:
        facts = __salt__["pgcluster.sql"](connection(own), _HERE, SOON, "facts of the server")
        here.update(facts[0])
    except CommandExecutionError as problem:
        here["error"] = str(problem)
    here["disk"] = _disk(own["postgresql"]["data_dir"])
    made: dict[str, Any]
    try:
        shown, configured = _json(own, "/cluster", SOON), _json(own, "/config", SOON)
    except CommandExecutionError as problem:
        alone = _json(own, "/patroni", SOON)
        made = __salt__["patroni_rules.by_itself"](alone, here, str(problem))
    else:
        made = __salt__["patroni_rules.joined"](shown, here, configured)
    return made


def is_leader(config: str = CONFIG) -> bool:
    """Whether this member has the leader's key, and runs as the primary.

    :raises CommandExecutionError: when Patroni does not answer here.
    """
    return _asked(read_config(config), "GET", "/leader")[0] == 200


def streaming(seconds: float = 60, config: str = CONFIG) -> dict[str, Any]:
    """Wait until this member leads, or streams and is less than :data:`NEAR_BYTES` behind.

    :param seconds: the bound; a first copy takes as long as its size does.
    :returns: ``role``, ``seconds`` waited, ``lag`` in bytes.
    :raises CommandExecutionError: after the bound, with how it stands.
    """
    own = read_config(config)
    last: Any = "nothing asked"

    def near() -> Any:
        nonlocal last
        try:
            shown = status(config)
        except CommandExecutionError as problem:
            last = str(problem)
            return None
        row = shown["members"].get(own["name"], {})
        receiving = shown["here"].get("receiving")
        last = {**row, "receiving": receiving}
        leads = row.get("role") == "leader"
        lag = row.get("lag")
        near = receiving == "streaming" and lag is not None and lag < NEAR_BYTES
        return row if row.get("state") in ("running", "streaming") and (leads or near) else None

    begun = time.monotonic()
    row = _waited(
        near, seconds, f"{own['name']} to lead or to stream",
        lambda: f"Last: {last}. See journalctl -u patroni there",
    )
    waited = round(time.monotonic() - begun, 3)
    return {"role": row["role"], "lag": row["lag"], "seconds": waited}


def switchover(to: str = "", seconds: float = 30, config: str = CONFIG) -> dict[str, Any]:
    """Another member becomes the leader; what was acknowledged is on it.

    :param to: its name; without: the standby that is the least behind.
    :param seconds: bound of the whole.
    :returns: ``leader`` (new), ``before``, ``seconds`` until the new one takes writes.
    :raises CommandExecutionError: when nobody can take over (nothing was done), or it took longer.

    CLI Example:

    .. code-block:: bash

        salt database1 patroni.switchover to=database2
    """
    own = read_config(config)
    now = status(config)
    bound = int(_json(own, "/config").get("maximum_lag_on_failover", NEAR_BYTES))
    try:
        target = __salt__["patroni_rules.candidate"](now, to, bound)
    except ValueError as problem:
        raise CommandExecutionError(f"switchover: {problem}") from None
    before = now["leader"]
    begun = time.monotonic()
    # Patroni answers when it is over, or after two of its rounds.
    answer = _asked(
        own, "POST", "/switchover", {"leader": before, "candidate": target}, seconds=seconds
    )
    if answer[0] not in (200, 202):
        raise CommandExecutionError(f"switchover from {before} to {target}: {answer[1].strip()}")
    url = _members(own)[target]
    _waited(
        lambda: _asked(own, "GET", "/leader", url=url)[0] == 200,
        max(0.0, seconds - (time.monotonic() - begun)),
        f"{target} to lead",
        f"Patroni had said: {answer[1].strip()}. See patroni.status, and journalctl -u patroni on "
        f"{target} and {before}",
    )
    return {
        "leader": target, "before": before, "seconds": round(time.monotonic() - begun, 3),
    }  # fmt: skip


def reinit(member: str, config: str = CONFIG) -> dict[str, Any]:
    """A standby's data is thrown away, and copied anew; wait for it by :func:`streaming` there.

    :param member: its name; never the leader's.
    :raises CommandExecutionError: when Patroni refuses, with its reason.
    """
    own = read_config(config)
    urls = _members(own)
    if member not in urls:
        known = ", ".join(sorted(urls))
        raise CommandExecutionError(f"reinit: {member} is no member; members are {known}")
    code, said = _asked(own, "POST", "/reinitialize", {"force": True}, url=urls[member])
    if code != 200:
        raise CommandExecutionError(f"reinit of {member}: {said.strip()}")
    return {"member": member, "said": said.strip()}


def restart(member: str = "", seconds: float = 60, config: str = CONFIG) -> dict[str, Any]:
    """PostgreSQL of a member is restarted: what ``pending_restart`` waits for.

    :param member: its name; without: of this machine.
    :param seconds: the bound.
    :raises CommandExecutionError: when it did not come back.
    """
    own = read_config(config)
    name = member or own["name"]
    url = _members(own).get(name)
    if url is None:
        raise CommandExecutionError(f"restart: {name} is no member, see patroni.status")
    code, said = _asked(own, "POST", "/restart", {"timeout": seconds}, seconds + 5, url)
    if code != 200:
        raise CommandExecutionError(f"restart of {name}: {said.strip()}")
    return {"member": name, "said": said.strip()}


def pause(seconds: float = 30, config: str = CONFIG) -> dict[str, Any]:
    """Nobody is promoted, demoted, started or stopped, until :func:`resume`.

    :param seconds: until every member knows.
    :raises CommandExecutionError: after the bound.
    """
    return _paused(True, seconds, config)


def resume(seconds: float = 30, config: str = CONFIG) -> dict[str, Any]:
    """The end of :func:`pause`."""
    return _paused(False, seconds, config)


def read_config(config: str = CONFIG) -> dict[str, Any]:
    """Patroni's own configuration.

    :raises CommandExecutionError: when there is none.
    """
    try:
        with salt.utils.files.fopen(config, encoding="utf-8") as file:
            loaded: dict[str, Any] = salt.utils.yaml.safe_load(file)
            return loaded
    except FileNotFoundError:
        raise CommandExecutionError(
            f"{config} is not there: apply the state patroni to this machine first"
        ) from None


def connection(own: Mapping[str, Any], database: str = "postgres") -> dict[str, Any]:
    """The superuser's connection by the local socket, as ``pgcluster.sql`` takes it.

    :param own: see :func:`read_config`.
    """
    server = own["postgresql"]
    user = server["authentication"]["superuser"]["username"]
    params = {
        "host": server["parameters"]["unix_socket_directories"],
        "port": server["listen"].rpartition(":")[2],
        "user": user,
        "dbname": database,
    }
    return {"bindir": server["bin_dir"], "os_user": user, "params": params}


def _paused(wanted: bool, seconds: float, config: str) -> dict[str, Any]:
    own = read_config(config)
    code, said = _asked(own, "PATCH", "/config", {"pause": wanted or None})
    if code != 200:
        raise CommandExecutionError(f"Patroni: pause={wanted}: {said.strip()}")

    def known() -> bool:
        answers = [_asked(own, "GET", "/patroni", url=url) for url in _members(own).values()]
        rows = [json.loads(text) for code, text in answers if code]
        return all(bool(row.get("pause")) is wanted for row in rows)

    begun = time.monotonic()
    what = "every member to pause" if wanted else "every member to go on"
    _waited(known, seconds, what, "See patroni.status on each")
    return {"pause": wanted, "seconds": round(time.monotonic() - begun, 3)}


def _disk(folder: str) -> dict[str, int]:
    """Room for the data, or for its WAL where that is elsewhere and less."""
    found = []
    for path in (folder, f"{folder}/pg_wal"):
        # A copy that is being made has none yet.
        with contextlib.suppress(FileNotFoundError):
            row = shutil.disk_usage(path)
            found.append({"free": row.free, "size": row.total})
    return min(found, key=lambda row: row["free"] / row["size"], default={})


def _members(own: Mapping[str, Any]) -> dict[str, str]:
    """Name of each member → where its REST API is."""
    rows = _json(own, "/cluster").get("members", [])
    return {row["name"]: row["api_url"].rpartition("/")[0] for row in rows}


def _json(own: Mapping[str, Any], path: str, seconds: float = 10) -> dict[str, Any]:
    code, said = _asked(own, "GET", path, seconds=seconds)
    if code != 200:
        # Of /config: nothing is configured yet.
        if code == 404 or (code and path == "/config"):
            return {}
        raise CommandExecutionError(
            f"Patroni of {own['name']} does not answer {path}: {said.strip()}; see systemctl "
            "status patroni"
        )
    value: dict[str, Any] = json.loads(said)
    return value


def _asked(
    own: Mapping[str, Any],
    method: str,
    path: str,
    fields: Mapping[str, Any] | None = None,
    seconds: float = 10,
    url: str = "",
) -> tuple[int, str]:
    """Code and text of an answer; code 0 and the reason without one."""
    api = own["restapi"]
    url = url or f"https://{api['connect_address']}"
    context = ssl.create_default_context(cafile=api["cafile"])
    context.load_cert_chain(api["certfile"], api["keyfile"])
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    body = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(
        url + path, body, {"Content-Type": "application/json"}, method=method
    )
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def _waited(
    ready: Callable[[], Any], seconds: float, what: str, then: str | Callable[[], str]
) -> Any:
    return __salt__["pgcluster.wait_until"](ready, seconds, what, then, LOOK_SECONDS)
