"""Whether it is safe to start. What is not known is refused, never guessed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psycopg2
import psycopg2.extensions as pg

from .config import primary_args
from .connections import Connection, connect
from .errors import Refused

#: Releases of Synapse that the checker ran on.
PROVED_ON = ("1.163.2",)

#: ``DatabasePool.new_transaction``, which is private, as it was there.
PARAMETERS = (
    "self", "conn", "desc", "after_callbacks", "async_after_callbacks", "exception_callbacks",
    "func", "args", "kwargs",
)

#: ``LoggingDatabaseConnection``, likewise.
CONNECTION = ("self", "conn", "engine", "default_txn_name", "server_name")

#: With these a commit is flushed before anybody sees it or is told of it. ``local`` was not proved.
SYNCHRONOUS = ("on", "remote_write", "remote_apply")

_SERVER = (
    "SELECT current_setting('synchronous_commit'), current_setting('server_version_num')::int,"
    " pg_is_in_recovery(), pg_has_role(current_user, 'pg_read_all_stats', 'usage'), current_user"
)


def release_problem(release: str) -> str | None:
    """What is to be said about a release of Synapse."""
    if release in PROVED_ON:
        return None
    return (
        f"Synapse {release} is none of {', '.join(PROVED_ON)}, which standby reads were proved on: "
        "run the checker of the package's sources on it, or say `unproved_release: warn`"
    )


def interface_problems(pool: type, connection: type) -> list[str]:
    """What is different in Synapse's private interface.

    :param pool: ``DatabasePool``.
    :param connection: ``LoggingDatabaseConnection``.
    """
    new_transaction = getattr(pool, "new_transaction", None)
    wanted = {"DatabasePool.new_transaction": (new_transaction, PARAMETERS),
              "LoggingDatabaseConnection": (connection.__init__, CONNECTION)}  # type: ignore[misc]
    problems = []
    for name, (function, names) in wanted.items():
        found = tuple(inspect.signature(function).parameters) if function else ()
        if found != names:
            problems.append(
                f"{name} of this Synapse takes {found}, not {names}: this version of standby "
                "reads is not for it; take the module out of the configuration or update it"
            )
    return problems


def engine_problems(database: Any) -> list[str]:
    """What forbids it in Synapse's own database configuration.

    :param database: a ``DatabasePool``.
    """
    engine = database.engine
    name = getattr(database._database_config, "name", "?")
    if getattr(engine, "module", None) is not psycopg2:
        return [f"database {name} is no PostgreSQL by psycopg2: it has no standby; take the module "
                "out of the configuration"]
    problems = [
        f"database {name}: {attribute} is not there in this Synapse's engine; update standby reads"
        for attribute in ("on_new_connection", "default_isolation_level", "synchronous_commit")
        if not hasattr(engine, attribute)
    ]
    if not getattr(engine, "synchronous_commit", True):
        problems.append(
            f"database {name}: `synchronous_commit: false` acknowledges what no standby can have "
            "yet; take it out of homeserver.yaml"
        )
    if not hasattr(pg.connection, "pgconn_ptr"):
        problems.append("psycopg2 is older than 2.8, or not the one in C; install psycopg2")
    return problems


def server_problems(
    synchronous: str, version: int, recovery: bool, stats: bool, role: str
) -> list[str]:
    """What forbids it on the primary, as Synapse's role sees it."""
    problems = []
    if synchronous not in SYNCHRONOUS:
        problems.append(
            f"synchronous_commit is {synchronous} for {role}: only {', '.join(SYNCHRONOUS)} "
            "promise that what is acknowledged was flushed, and were proved; set it on in "
            f"postgresql.conf, and `ALTER ROLE {role} RESET synchronous_commit`, and the same of "
            "the database"
        )
    if version < 140000:
        problems.append(f"PostgreSQL {version // 10000} is older than 14; upgrade it")
    if recovery:
        problems.append("database.args lead to a standby; add target_session_attrs: read-write")
    if not stats:
        problems.append(
            f"{role} may not see which timeline a standby is on; run "
            f"`GRANT pg_read_all_stats TO {role}` on the primary"
        )
    return problems


def ask(own: Mapping[str, Any]) -> list[str]:
    """What forbids it on the primary, a pooler before it included.

    :param own: Synapse's ``database.args``.
    """
    made: list[Connection] = []
    try:
        connection = connect(primary_args(own), Connection, made.append)
        return server_problems(*connection.ask(_SERVER))
    except Refused as error:
        return [str(error)]
    except psycopg2.Error as error:
        return [f"the primary does not answer: {' '.join(str(error).split())}; see database.args"]
    finally:
        for each in made:
            with contextlib.suppress(psycopg2.Error):
                each.close()


def installed() -> str:
    """Synapse's release."""
    return metadata.version("matrix-synapse")
