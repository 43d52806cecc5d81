"""Synapse's database as Synapse sees it: facts for prechecks, migration, fingerprint.

Works with both of Synapse's engines and with a server that is elsewhere; what needs
PostgreSQL's superuser is in ``pgbackup``.
"""

from __future__ import annotations

import glob
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_db"

__salt__: dict[str, Any]
__context__: dict[str, Any]

GIVES_UP = "back-to-back background update failures; aborting"


#: Key of the migration's loaded program in ``__context__``.
WARM = "synapse_db.warm"

#: Loads what the migration needs, and runs it once it is told to.
WAITING = """
import sys
from synapse._scripts.update_synapse_database import main
sys.argv = sys.argv[1:]
if sys.stdin.readline():
    sys.exit(main())
"""

#: How long nginx holds a request (formula nginx, proxy_read_timeout).
HELD_SECONDS = 600


def __virtual__() -> str:
    return __virtualname__


def connection(config: str, user: str | None = None) -> dict[str, Any]:
    """How Synapse reaches its database, from its own configuration.

    :param config: path of homeserver.yaml.
    :param user: the account to connect as, where the server asks for peer authentication.
    :returns: ``{"engine": "psycopg2", "bindir", "os_user", "params"}`` or
        ``{"engine": "sqlite3", "path"}``.
    :raises CommandExecutionError: when the file names no database that is known here.
    """
    database = _configuration(config).get("database")
    if not isinstance(database, dict) or "name" not in database:
        raise CommandExecutionError(f"{config}: `database:` with a `name:` is missing")
    args = dict(database.get("args") or {})
    if database["name"] == "sqlite3":
        path = args.get("database", "")
        if not os.path.isabs(path):
            raise CommandExecutionError(
                f"{config}: database.args.database is {path!r}; write the absolute path of the "
                "SQLite file"
            )
        return {"engine": "sqlite3", "path": path}
    if database["name"] not in ("psycopg2", "psycopg"):
        raise CommandExecutionError(f"{config}: the engine {database['name']!r} is not known here")
    args["dbname"] = args.get("dbname") or args.get("database")
    skipped = ("database", "cp_min", "cp_max", "cp_reconnect", "cp_noisy", "cp_openfun")
    params = {k: v for k, v in args.items() if k not in skipped and v is not None}
    return {"engine": "psycopg2", "bindir": None, "os_user": user, "params": params}


def schema(
    config: str | None = None,
    connection: Mapping[str, Any] | None = None,
    user: str | None = None,
) -> dict[str, Any] | None:
    """Where the schema stands.

    :param config: path of homeserver.yaml; or else
    :param connection: a connection of ``pgcluster`` or of :func:`connection`.
    :param user: see :func:`connection`.
    :returns: ``version``, ``compat``, ``deltas`` (how many are applied) and ``pending``
        (names of background updates to be done); None for a database without a schema.

    CLI Example:

    .. code-block:: bash

        salt legacy synapse_db.schema /home/matrix/synapse/homeserver.yaml
    """
    at = _connection(config, connection, user)
    if at.get("engine") == "sqlite3":
        return _sqlite_schema(at["path"])
    found = __salt__["pgcluster.sql"](at, _SCHEMA, what="the schema's version")
    return found[0] if found else None


def facts(config: str, user: str | None = None) -> dict[str, Any]:
    """What a precheck has to know about the database.

    :param config: path of homeserver.yaml.
    :param user: see :func:`connection`.
    :returns: ``engine``, ``server_version`` (PostgreSQL: as 150014), ``encoding``,
        ``collate``, ``ctype``, ``schema`` (see :func:`schema`), ``bytes``, ``events``
        (estimate), ``free`` (path to free bytes, of what is on this machine), ``ssl`` (this
        connection is encrypted), ``ssl_on`` (the server offers it; None for SQLite),
        ``host``, ``name``, ``role`` (what the role may do), ``foreign_tables`` (not the
        role's own: a migration cannot alter them).
    :raises CommandExecutionError: when the database does not answer.

    CLI Example:

    .. code-block:: bash

        salt legacy synapse_db.facts /home/matrix/synapse/homeserver.yaml
    """
    at = connection(config, user)
    if at["engine"] == "sqlite3":
        return _sqlite_facts(at)
    answer: dict[str, Any] = _one(at, _FACTS, "facts of Synapse's database")
    answer["engine"] = "postgresql"
    answer["host"] = at["params"].get("host") or "local socket"
    answer["schema"] = schema(connection=at)
    answer["free"] = {}
    host = str(answer["host"])
    if host in ("localhost", "127.0.0.1", "::1", "local socket") or host.startswith("/"):
        try:
            port = int(at["params"].get("port") or 5432)
            data = __salt__["pgcluster.locate"]({"port": port})["data"]
            answer["free"] = {data: __salt__["pgcluster.free_bytes"](data)}
            answer["cluster"] = data
        except CommandExecutionError:
            answer["cluster"] = None
    return answer


def fingerprint(
    config: str, only: Sequence[str] | None = None, user: str | None = None
) -> dict[str, Any]:
    """Cheap proof of content through Synapse's own connection.

    :param config: path of homeserver.yaml.
    :param only: the measures of an earlier fingerprint, to compare with it by
        ``synapse_fingerprint.differences(before, after, migrated=True)``.
    :param user: see :func:`connection`.
    :returns: see ``synapse_fingerprint.take``.

    CLI Example:

    .. code-block:: bash

        salt legacy synapse_db.fingerprint /home/matrix/synapse/homeserver.yaml
    """
    at = connection(config, user)
    value: dict[str, Any] = __salt__["synapse_fingerprint.take"](at, only=only)
    return value


def migration_plan(
    seconds: float | None, rows: int, limit: float = 60, choice: str | None = None
) -> dict[str, Any]:
    """Offline or online: what the rehearsal's time means for the window.

    :param seconds: how long schema and background updates took on the restored copy;
        None when it was not rehearsed.
    :param rows: events in the database, for the words.
    :param limit: longest offline migration that is taken without asking, in seconds.
    :param choice: ``offline`` or ``online``, the operator's word; None to be asked.
    :returns: ``way`` (``offline``, ``online`` or ``needs-choice``), ``seconds`` and
        ``words``.
    :raises CommandExecutionError: for any other choice.
    """
    if choice not in (None, "offline", "online"):
        raise CommandExecutionError(
            f"the way of the migration is {choice!r}; write offline or online"
        )
    size = f"{rows:,} events"
    took = f"{seconds:.0f} s" if seconds is not None else "an unknown time"
    online = (
        "online: the door opens after the schema change alone, and the background updates run "
        f"while people chat (on {size}: about {took} of work, plus the pauses between batches). "
        "Until they are done unread counts show 0 and search may miss old messages; a rollback "
        "after the door opens loses what was written since."
    )
    offline = (
        f"offline: everything is done while the door is held, {took} on the restored copy "
        f"({size}); clients wait that long, and then see no difference."
    )
    if seconds is not None and seconds > HELD_SECONDS * 0.8:
        offline += (
            f" A request is held for at most {HELD_SECONDS} s: what waits longer fails, and "
            "clients have to try again."
        )
    if choice:
        words = online if choice == "online" else offline
        return {"way": choice, "seconds": seconds, "words": words}
    if seconds is not None and seconds <= limit:
        return {"way": "offline", "seconds": seconds, "words": offline}
    return {
        "way": "needs-choice",
        "seconds": seconds,
        "words": (
            f"the migration is expected to take {took} ({size}), more than the {limit:g} s that "
            f"are taken without asking. Choose: {offline} Or {online}"
        ),
    }


def target_schema(release: str) -> int:
    """The schema version that a release brings.

    :param release: its folder (a virtual environment).
    :raises CommandExecutionError: when there is no Synapse in it.
    """
    pattern = f"{release}/lib/python3*/site-packages/synapse/storage/schema/__init__.py"
    for path in glob.glob(pattern):
        with open(path, encoding="utf-8") as file:
            found = re.search(r"^SCHEMA_VERSION = (\d+)", file.read(), re.M)
        if found:
            return int(found.group(1))
    raise CommandExecutionError(f"{release}: holds no Synapse; install the release first")


def migrate(
    config: str,
    release: str,
    user: str | None = None,
    online: bool = False,
    timeout: float = 3600,
    resume: bool = False,
) -> dict[str, Any]:
    """Bring the database to the release's schema; Synapse must be stopped.

    :param config: path of homeserver.yaml, as the new release will read it.
    :param release: the new release's folder.
    :param user: account to run as, Synapse's.
    :param online: leave the background updates to the running server.
    :param timeout: seconds, all in all.
    :param resume: go on although background updates wait on an older schema, which is so
        after a migration that was killed half way.
    :returns: ``changed``, ``seconds``, ``before`` and ``after`` (see :func:`schema`).
    :raises CommandExecutionError: when it fails; the exit code alone is not believed.

    CLI Example:

    .. code-block:: bash

        salt legacy synapse_db.migrate /etc/synapse/homeserver.yaml /opt/synapse/releases/1.163.2
    """
    target = target_schema(release)
    before = schema(config, user=user)
    if before and before["version"] > target:
        raise CommandExecutionError(
            f"{config}: the database has schema {before['version']}, newer than {release} "
            f"({target}); use a newer release"
        )
    if before and before["version"] == target and (online or not before["pending"]):
        _cool()
        return {"changed": False, "seconds": 0.0, "before": before, "after": before}
    if before and before["version"] < target and before["pending"] and not resume:
        raise CommandExecutionError(
            f"{config}: {len(before['pending'])} background updates of the old release wait "
            f"({', '.join(before['pending'][:5])}); a newer schema on top breaks the database. "
            "Let the old release finish them. After a migration that was killed: restore the "
            "mark, or pass resume=True."
        )
    started = time.monotonic()
    run_update(config, release, user, online, timeout)
    seconds = time.monotonic() - started
    after = schema(config, user=user)
    if not after or after["version"] != target or (after["pending"] and not online):
        raise CommandExecutionError(
            f"{config}: update_synapse_database ended well, but the schema is {after}, not "
            f"{target} with nothing pending; do not start this release, restore the mark"
        )
    return {"changed": True, "seconds": round(seconds, 2), "before": before, "after": after}


def warm(config: str, release: str, user: str | None = None, online: bool = False) -> None:
    """Load the migration's program now, so that a later :func:`migrate` of this run need not.

    It does nothing until then, and nothing at all when this run ends without it.

    :param config: path of homeserver.yaml.
    :param release: the new release's folder.
    :param user: account to run as.
    :param online: leave out the background updates.
    """
    handle, log = tempfile.mkstemp(prefix="saltworks-migration-", suffix=".log")
    os.close(handle)
    program = [f"{release}/bin/python", "-c", WAITING, *_update(config, release, online)]
    process = __salt__["pgcluster.hold"](program, user, log)
    __context__[WARM] = ((config, release, user, online), process, log)


def _cool() -> None:
    _, process, log = __context__.pop(WARM, (None, None, ""))
    if process is not None:
        process.stdin.close()
        process.wait(60)
        os.unlink(log)


def run_update(config: str, release: str, user: str | None, online: bool, timeout: float) -> None:
    """Run the release's ``update_synapse_database``, bounded.

    It never ends by itself once background updates have failed five times in a row, so
    its log is watched for that.

    :param config: path of the configuration that names the database.
    :param release: the release's folder.
    :param user: account to run as.
    :param online: leave out the background updates.
    :param timeout: seconds.
    """
    key, process, log = __context__.pop(WARM, (None, None, ""))
    what = "the migration"
    if key == (config, release, user, online) and process.poll() is None:
        try:
            __salt__["pgcluster.let_go"](process, timeout, what, log, stop_at=GIVES_UP)
        finally:
            os.unlink(log)
        return
    handle, log = tempfile.mkstemp(prefix="saltworks-migration-", suffix=".log")
    os.close(handle)
    try:
        __salt__["pgcluster.run"](
            _update(config, release, online),
            os_user=user,
            timeout=timeout,
            what=what,
            log=log,
            stop_at=GIVES_UP,
        )
    finally:
        os.unlink(log)


def _update(config: str, release: str, online: bool) -> list[str]:
    argv = [f"{release}/bin/update_synapse_database", "--database-config", config]
    return argv if online else [*argv, "--run-background-updates"]


_SCHEMA = """
SELECT to_regclass('schema_version') IS NOT NULL AS present,
       to_regclass('schema_compat_version') IS NOT NULL AS compat \\gset
\\if :compat
SELECT compat_version AS compat_version FROM schema_compat_version \\gset
\\else
\\set compat_version NULL
\\endif
\\if :present
SELECT json_build_object(
  'version', (SELECT version FROM schema_version), 'compat', :compat_version,
  'deltas', (SELECT count(*) FROM applied_schema_deltas),
  'pending', (SELECT coalesce(json_agg(update_name ORDER BY update_name), '[]')
              FROM background_updates));
\\endif
"""

_FACTS = """
SELECT json_build_object(
  'server_version', current_setting('server_version_num')::int,
  'name', current_database(),
  'encoding', pg_encoding_to_char(d.encoding), 'collate', d.datcollate, 'ctype', d.datctype,
  'bytes', pg_database_size(d.oid),
  'events', (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('events')),
  'ssl_on', current_setting('ssl')::bool,
  'ssl', (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()),
  'role', json_build_object(
     'name', current_user,
     'owns_database', pg_has_role(d.datdba, 'USAGE'),
     'may_create', has_schema_privilege(current_schema(), 'CREATE'),
     'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)),
  'foreign_tables', (
     SELECT coalesce(json_agg(relname ORDER BY relname), '[]') FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'S', 'p')
       AND NOT pg_has_role(relowner, 'USAGE')))
FROM pg_database d WHERE d.datname = current_database();
"""


def _connection(
    config: str | None, given: Mapping[str, Any] | None, user: str | None
) -> Mapping[str, Any]:
    if given:
        return given
    if not config:
        raise CommandExecutionError("synapse_db: name a homeserver.yaml or a connection")
    return connection(config, user)


def _one(at: Mapping[str, Any], statement: str, what: str, timeout: float = 60) -> Any:
    return __salt__["pgcluster.sql"](at, statement, timeout=timeout, what=what)[0]


def _configuration(config: str) -> dict[str, Any]:
    try:
        with open(config, encoding="utf-8") as file:
            loaded = yaml.safe_load(file)
    except OSError as problem:
        raise CommandExecutionError(f"{config}: cannot be read: {problem.strerror}") from None
    except yaml.YAMLError as problem:
        raise CommandExecutionError(f"{config}: is not YAML: {problem}") from None
    if not isinstance(loaded, dict):
        raise CommandExecutionError(f"{config}: is empty or not a mapping")
    return loaded


def _open(path: str) -> sqlite3.Connection:
    if not os.path.isfile(path):
        raise CommandExecutionError(f"{path}: there is no SQLite database")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as problem:
        db.close()
        raise CommandExecutionError(
            f"{path}: cannot be read as SQLite ({problem}); after a crash start and stop the old "
            "Synapse once, so that it heals its file"
        ) from None
    return db


def _sqlite_schema(path: str) -> dict[str, Any] | None:
    present = __salt__["synapse_fingerprint.tables"]({"engine": "sqlite3", "path": path})
    if "schema_version" not in present:
        return None
    with closing(_open(path)) as db:
        compat = None
        if "schema_compat_version" in present:
            compat = db.execute("SELECT compat_version FROM schema_compat_version").fetchone()
        updates = db.execute("SELECT update_name FROM background_updates ORDER BY 1").fetchall()
        return {
            "version": db.execute("SELECT version FROM schema_version").fetchone()[0],
            "compat": compat[0] if compat else None,
            "deltas": db.execute("SELECT count(*) FROM applied_schema_deltas").fetchone()[0],
            "pending": [row[0] for row in updates],
        }


def _sqlite_facts(at: Mapping[str, Any]) -> dict[str, Any]:
    path = at["path"]
    state = schema(connection=at)
    with closing(_open(path)) as db:
        events = db.execute("SELECT max(rowid) FROM events").fetchone()[0] if state else 0
    folder = os.path.dirname(path)
    return {
        "engine": "sqlite",
        "server_version": sqlite3.sqlite_version,
        "name": path,
        "bytes": os.path.getsize(path),
        "events": events or 0,
        "schema": state,
        "free": {folder: __salt__["pgcluster.free_bytes"](folder)},
        "host": None,
        "ssl": None,
        "ssl_on": None,
        "role": {"may_create": os.access(folder, os.W_OK)},
        "foreign_tables": [],
    }
