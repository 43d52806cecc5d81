"""Who may connect to a PostgreSQL cluster, and what a copy of it would take.

Passwords are never sent: the server is given SCRAM verifiers, made here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "pgadmit"

__salt__: dict[str, Any]

#: Our lines in pg_hba.conf stand between these, first of all: the first that fits decides.
BEGIN, END = "# Saltworks begin\n", "# Saltworks end\n"

#: Before even those, while the cluster is shut.
SHUT_BEGIN, SHUT_END = "# Saltworks shut begin\n", "# Saltworks shut end\n"

#: PostgreSQL's own (src/include/common/scram-common.h).
ITERATIONS = 4096

Cluster = str | Mapping[str, Any] | None

_SURVEY = """
SELECT json_build_object(
  'recovery', pg_is_in_recovery(),
  'ssl', current_setting('ssl')::bool,
  'databases', (SELECT json_object_agg(datname, json_build_object(
       'encoding', pg_encoding_to_char(encoding), 'collate', datcollate, 'ctype', datctype))
     FROM pg_database WHERE NOT datistemplate),
  'extensions', (SELECT coalesce(json_agg(name ORDER BY name), '[]')
     FROM regexp_split_to_table(current_setting('shared_preload_libraries'), ' *, *') name
     WHERE name <> ''));
"""


def __virtual__() -> str:
    return __virtualname__


def survey(cluster: Cluster) -> dict[str, Any]:
    """What a copy of a whole cluster has to know of it.

    :param cluster: see ``pgcluster.locate``.
    :returns: what ``pgcluster.server`` answers, with ``recovery``, ``ssl``, ``databases``
        (name to ``encoding``, ``collate`` and ``ctype``, templates left out) and
        ``extensions`` (libraries that it loads at start).

    CLI Example:

    .. code-block:: bash

        salt legacy pgadmit.survey '{"port": 5432}'
    """
    at = __salt__["pgcluster.locate"](cluster)
    more = _sql(at, _SURVEY)[0]
    return {**__salt__["pgcluster.server"](at), **more}


def missing(
    cluster: Cluster, roles: Mapping[str, Mapping[str, Any]], lines: Sequence[str]
) -> list[str]:
    """What :func:`admit` would do; arguments are the same."""
    at = __salt__["pgcluster.locate"](cluster)
    found = [f"role {name}" for name in _wrong_roles(at, roles)]
    path = _hba(at)
    if hba(_text(path), lines) != _text(path):
        found.append(path)
    return found


def admit(
    cluster: Cluster, roles: Mapping[str, Mapping[str, Any]], lines: Sequence[str]
) -> list[str]:
    """Roles have passwords, and pg_hba.conf has our lines, first of all.

    :param cluster: see ``pgcluster.locate``; a primary.
    :param roles: name to ``password`` and ``replication`` (it may replicate, and nothing
        else) or ``made``: these are made if they are missing, others must exist.
    :param lines: of pg_hba.conf; with none ours are taken out.
    :returns: what was changed.
    :raises CommandExecutionError: when PostgreSQL does not take it; pg_hba.conf is as it was.
    """
    at = __salt__["pgcluster.locate"](cluster)
    changed = missing(at, roles, lines)
    give(at, roles)
    path = _hba(at)
    if path in changed:
        _put_hba(at, path, lines)
    return changed


def give(cluster: Cluster, roles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Roles have their passwords; see :func:`admit`.

    :returns: the names of those that had to be changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    wrong = _wrong_roles(at, roles)
    for name in wrong:
        quoted = '"' + name.replace('"', '""') + '"'
        row, may = roles[name], "REPLICATION" if roles[name].get("replication") else ""
        made = f"DO $$ BEGIN CREATE ROLE {quoted}; EXCEPTION WHEN duplicate_object THEN END $$;\n"
        _sql(
            at,
            (made if row.get("replication") or row.get("made") else "")
            + f"ALTER ROLE {quoted} LOGIN {may} PASSWORD '{verifier(row['password'])}';",
        )
    return wrong


def withdraw(cluster: Cluster, role: str, test: bool = False) -> list[str]:
    """Our role for copies is gone, and so are our lines of pg_hba.conf.

    :param cluster: see ``pgcluster.locate``; a primary.
    :param role: its name.
    :param test: only say what would be done.
    :returns: what was changed.
    """
    at = __salt__["pgcluster.locate"](cluster)
    changed = missing(at, {}, [])
    if _roles(at).get(role):
        changed.append(f"role {role}")
    if not test:
        admit(at, {}, [])
        _sql(at, f'DROP ROLE IF EXISTS "{role}";')
    return changed


def shut(cluster: Cluster, role: str) -> bool:
    """Let in nobody but the superuser at the local socket, and a role that replicates.

    It outlives restarts: it stands in pg_hba.conf, before every other line. Who is connected
    already stays.

    :param cluster: see ``pgcluster.locate``; it runs.
    :param role: the lines that let it in still count.
    :returns: whether it was open.
    :raises CommandExecutionError: when PostgreSQL does not take it; pg_hba.conf is as it was.
    """
    at = __salt__["pgcluster.locate"](cluster)
    path = _hba(at)
    before = _text(path)
    after = shut_hba(before, at["os_user"], role)
    _put(at, path, before, after)
    return before != after


def reopen(cluster: Cluster) -> bool:
    """The other end of :func:`shut`: who was let in before is let in again.

    :returns: whether it was shut.
    """
    at = __salt__["pgcluster.locate"](cluster)
    path = _hba(at)
    before = _text(path)
    after = shut_hba(before, "", None)
    _put(at, path, before, after)
    return before != after


def is_shut(cluster: Cluster) -> bool:
    """Whether :func:`shut` is in force, on a cluster that runs or not."""
    at = __salt__["pgcluster.locate"](cluster)
    runs = __salt__["pgcluster.condition"](at["data"]) in ("ready", "standby")
    return SHUT_BEGIN in _text(_hba(at) if runs else f"{at['config']}/pg_hba.conf")


def slots(cluster: Cluster, wanted: Sequence[str], test: bool = False) -> list[str]:
    """No slot named ``saltworks_*`` but those wanted; one holds WAL until it is dropped.

    :param cluster: see ``pgcluster.locate``.
    :param wanted: names.
    :param test: only say what would be done.
    :returns: the slots that went.
    """
    at = __salt__["pgcluster.locate"](cluster)
    rows = _sql(
        at,
        "SELECT json_build_array(slot_name, active_pid) FROM pg_replication_slots "
        "WHERE slot_name LIKE 'saltworks\\_%' ORDER BY slot_name;",
    )
    gone = [name for name, _ in rows if name not in wanted]
    for name in [] if test else gone:
        that = f"FROM pg_replication_slots WHERE slot_name = '{name}'"
        script = (
            f"SELECT to_json(pg_terminate_backend(active_pid)) {that} AND active;\n"
            f"SELECT to_json(pg_drop_replication_slot(slot_name)::text) {that} AND NOT active;\n"
            f"SELECT to_json(count(*)) {that};"
        )
        __salt__["pgcluster.wait_until"](
            lambda script=script: _sql(at, script)[-1] == 0,
            10,
            f"the slot {name} to be dropped",
            "It is taken up again and again: see pg_stat_replication",
            0.1,
        )
    return gone


def sessions(cluster: Cluster, database: str) -> dict[str, Any]:
    """Who is connected to a database from other machines.

    :param cluster: see ``pgcluster.locate``.
    :param database: its name.
    :returns: ``sessions``, rows ``client`` (address), ``role``, ``ssl``.
    """
    at = __salt__["pgcluster.locate"](cluster)
    name = database.replace("'", "''")
    rows = _sql(
        at,
        "SELECT json_build_object('client', host(client_addr), 'role', usename, 'ssl', ssl) "
        "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
        f"WHERE datname = '{name}' AND client_addr IS NOT NULL;",
    )
    return {"sessions": rows}


def hba(text: str, lines: Sequence[str]) -> str:
    """pg_hba.conf with our lines first, and everything else as it was; what is shut stays so."""
    found = re.search(f"{SHUT_BEGIN}.*?{SHUT_END}", text, flags=re.DOTALL)
    first = found.group(0) if found else ""
    rest = re.sub(f"{BEGIN}.*?{END}", "", text.replace(first, ""), flags=re.DOTALL)
    ours = BEGIN + "".join(f"{line}\n" for line in lines) + END if lines else ""
    return first + ours + rest


def shut_hba(text: str, superuser: str, role: str | None) -> str:
    """pg_hba.conf that lets in nobody but a superuser and a role that replicates.

    :param superuser: at the local socket, by the account of the same name.
    :param role: its lines are taken over; None: nothing is shut.
    """
    rest = re.sub(f"{SHUT_BEGIN}.*?{SHUT_END}", "", text, flags=re.DOTALL)
    if role is None:
        return rest
    kept = [line for line in rest.splitlines() if line.split()[2:3] == [role]]
    lines = [
        f"local all {superuser} peer",
        *kept,
        # `all` does not stand for physical replication, which only reads.
        "local all all reject",
        "host all all all reject",
    ]
    return SHUT_BEGIN + "".join(f"{line}\n" for line in lines) + SHUT_END + rest


def verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL keeps of a password (RFC 5803)."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    keys = hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")
    words = (base64.b64encode(part).decode() for part in (salt, *keys))
    return "SCRAM-SHA-256${}:{}${}:{}".format(ITERATIONS, *words)


def fits(password: str, kept: str | None) -> bool:
    """Whether ``kept`` is a SCRAM verifier of this password."""
    found = re.match(r"SCRAM-SHA-256\$(\d+):([^$]+)\$", kept or "")
    if not found or int(found.group(1)) != ITERATIONS:
        return False
    return hmac.compare_digest(verifier(password, base64.b64decode(found.group(2))), kept or "")


def _wrong_roles(at: Mapping[str, Any], roles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    there = _roles(at)
    wrong = []
    for name, row in sorted(roles.items()):
        known = there.get(name)
        if known is None and not row.get("replication") and not row.get("made"):
            raise CommandExecutionError(
                f"PostgreSQL has no role {name!r}; correct synapse.database.user in the map"
            )
        if not (
            known
            and fits(row["password"], known["kept"])
            and known["login"]
            and (known["replication"] or not row.get("replication"))
        ):
            wrong.append(name)
    return wrong


def _roles(at: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = _sql(
        at,
        "SELECT json_object_agg(rolname, json_build_object('kept', rolpassword, "
        "'login', rolcanlogin, 'replication', rolreplication)) FROM pg_authid;",
    )[0]
    return rows


def _put_hba(at: Mapping[str, Any], path: str, lines: Sequence[str]) -> None:
    before = _text(path)
    _put(at, path, before, hba(before, lines))


def _put(at: Mapping[str, Any], path: str, before: str, after: str) -> None:
    """Another text in its place, once PostgreSQL takes it; it is in force when this returns."""
    _rewrite(path, after)
    wrong = _sql(
        at,
        "SELECT json_build_array(line_number, error) FROM pg_hba_file_rules "
        "WHERE error IS NOT NULL;",
    )
    if wrong:
        _rewrite(path, before)
        raise CommandExecutionError(
            f"{path}: PostgreSQL does not take it: {wrong}; it is as it was"
        )
    loaded = "SELECT to_json(pg_conf_load_time());"
    known = _sql(at, loaded)
    _sql(at, "SELECT to_json(pg_reload_conf());")
    # A session has the time from the server's main process, which lets in the next one.
    __salt__["pgcluster.wait_until"](
        lambda: _sql(at, loaded) != known, 10, f"PostgreSQL to read {path}", "See its log."
    )


def _rewrite(path: str, text: str) -> None:
    """Another file in its place, whole or not at all, with the same owner and mode.

    Synced with its folder: what is shut must still be so after a power cut.
    """
    was = os.stat(path)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        os.fchown(file.fileno(), was.st_uid, was.st_gid)
        os.fchmod(file.fileno(), was.st_mode & 0o7777)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _hba(at: Mapping[str, Any]) -> str:
    path: str = _sql(at, "SELECT to_json(current_setting('hba_file'));")[0]
    return path


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _sql(at: Mapping[str, Any], script: str) -> list[Any]:
    there = __salt__["pgcluster.connection"](at)
    rows: list[Any] = __salt__["pgcluster.sql"](there, script, what=script.strip()[:50])
    return rows
