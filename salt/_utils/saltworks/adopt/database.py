"""The database as the old server reaches it."""

from __future__ import annotations

from typing import Any

from .. import releases
from .model import dotted
from .rules import rule
from .sections import unknown
from .values import carried
from .work import Work, version

#: Keys beside ``args`` that both releases read; the plan writes the section anew.
_BESIDE = frozenset(("name", "args", "data_stores", "txn_limit", "allow_unsafe_locale"))
_NEW_BESIDE = frozenset(("statement_timeout", "idle_in_transaction_session_timeout"))
_PLACE = frozenset(("database", "dbname", "user", "username", "password", "host", "port"))


@rule("database")
def _database(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, dict):
        work.say((key,), "cannot-carry", "it must be a section with name and args")
        return
    section(work, (key,), value)


@rule("databases")
def _databases(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, dict) or not value:
        work.say((key,), "dropped-no-effect", "it is empty")
    elif len(value) == 1 and isinstance(next(iter(value.values())), dict):
        name, only = next(iter(value.items()))
        section(work, (key, str(name)), only)
    else:
        work.say((key,), "replaced", "see the problem")
        work.refuse(
            (key,),
            f"the data is spread over {len(value)} databases ({', '.join(map(str, value))})",
            "bring the stores together in one database; saltworks moves only one",
        )


@rule("database_path")
def _path(work: Work, key: str, value: Any) -> None:
    if isinstance(work.values.get("database"), dict) and (
        work.values["database"].get("name", "sqlite3") != "sqlite3"
    ):
        work.say((key,), "dropped-no-effect", "the database section names PostgreSQL")
    else:
        work.say((key,), "renamed", "the SQLite file", new_key="database.path")


def section(work: Work, base: tuple[str | int, ...], value: dict[str, Any]) -> None:
    """Give the verdicts on one database section."""
    for key, item in value.items():
        path = (*base, str(key))
        if key == "name":
            work.say(path, "kept", "recorded in the cluster map", new_key="synapse.database.engine")
        elif key == "data_stores":
            work.say(path, "dropped-no-effect", "one database holds both stores")
        elif key == "allow_unsafe_locale":
            work.say(
                path, "cannot-carry" if item else "dropped-no-effect",
                "the database has another locale than C, which may corrupt its indexes when moved"
                if item else "it is off",
                todo="dump it and restore it into a database with locale C, as Synapse's docs say",
            )
        elif key == "synchronous_commit":
            if item is False:
                work.say(
                    path, "cannot-carry",
                    "it lets a crash take back messages that were acknowledged",
                    todo="remove it",
                )
            else:
                work.say(path, "dropped-no-effect", "on is the default")
        elif key == "args" and isinstance(item, dict):
            _args(work, path, item)
        elif key == "args" and item is None:
            work.say(path, "dropped-no-effect", "it is empty")
        elif key in _BESIDE or key in _NEW_BESIDE:
            work.say(
                path, "cannot-carry", "the plan writes the database section without it",
                todo="ask for it in saltworks/plan.py",
            )
        else:
            unknown(work, path, _BESIDE | _NEW_BESIDE)


def _args(work: Work, base: tuple[str | int, ...], args: dict[str, Any]) -> None:
    for key in args:
        path = (*base, str(key))
        if key == "password":
            work.say(path, "kept", "put away", new_key="the secret database_password")
        elif key in ("username", "dbname"):
            new = {"username": "user", "dbname": "name"}[key]
            work.say(path, "renamed", "today's name", new_key=f"synapse.database.{new}")
        elif key in _PLACE:
            work.say(path, "kept", "recorded in the cluster map", new_key=f"synapse.database.{key}")
        elif _engine(work) == "sqlite3":
            work.say(path, "dropped-no-effect", "Synapse sets it itself for SQLite")
        elif key == "dsn":
            work.say(
                path, "cannot-carry", "a connection string cannot be taken apart safely",
                todo="write database, user, password, host and port as args",
            )
        elif key in ("sslrootcert", "sslcert", "sslkey", "passfile", "service"):
            work.say(
                path, "cannot-carry", "it names a file of the old machine",
                todo="connect by password, without it",
            )
        else:
            work.say(path, "kept", "same meaning", new_key=f"synapse.database.args.{key}")


def place(work: Work) -> dict[str, Any] | None:
    """The database for the cluster map; problems are added for what is missing."""
    values = work.values
    section_ = values.get("database")
    base: tuple[str | int, ...] = ("database",)
    several = values.get("databases")
    if section_ is None and isinstance(several, dict) and len(several) == 1:
        name, section_ = next(iter(several.items()))
        base = ("databases", str(name))
    if section_ is None and values.get("database_path"):
        section_ = {"name": "sqlite3", "args": {}}
    if not isinstance(section_, dict):
        if not several:
            work.refuse(
                "homeserver.yaml", "no database is configured",
                "write the database section that the running Synapse uses",
            )
        return None
    args = section_.get("args")
    args = args if isinstance(args, dict) else {}
    engine = str(section_.get("name", "sqlite3"))
    if engine == "sqlite3":
        return _sqlite(work, base, args)
    if engine == "psycopg2":
        return _postgresql(work, base, args)
    work.refuse(
        (*base, "name"), f"Synapse knows no database engine {engine!r}",
        "write psycopg2 or sqlite3, whichever the running Synapse uses",
    )
    return None


def _sqlite(
    work: Work, base: tuple[str | int, ...], args: dict[str, Any]
) -> dict[str, Any] | None:
    path = str(work.values.get("database_path") or args.get("database") or "")
    if path == ":memory:" or not path:
        what = "the database is in memory: it is lost at every restart" if path else (
            "the SQLite database has no path"
        )
        work.refuse((*base, "args"), what, "give Synapse a database file, or PostgreSQL")
        return None
    found = version(work.found.get("sqlite_version"))
    if found and found < releases.SQLITE_MINIMUM:
        wanted = releases.dotted(releases.SQLITE_MINIMUM)
        work.refuse(
            "SQLite",
            f"the library is {work.found['sqlite_version']}; {work.target} wants {wanted}",
            "upgrade the operating system first, or move to PostgreSQL",
        )
    return {"engine": "sqlite3", "path": work.reading.absolute(path)}


def _postgresql(
    work: Work, base: tuple[str | int, ...], args: dict[str, Any]
) -> dict[str, Any]:
    user = args.get("user") or args.get("username") or work.found.get("user")
    name = args.get("database") or args.get("dbname") or user
    host = args.get("host")
    result: dict[str, Any] = {"engine": "psycopg2", "name": str(name), "user": str(user)}
    if host:
        result["host"] = str(host)
    port = args.get("port")
    if port is not None:
        if not str(port).isdigit():
            work.refuse((*base, "args", "port"), f"{port!r} is no port", "write a number")
        else:
            result["port"] = int(port)
    rest = {
        str(key): carried(work, (*base, "args", str(key)), item)
        for key, item in args.items()
        if key not in _PLACE and not _lost(work, (*base, "args", str(key)))
    }
    if rest:
        result["args"] = rest
    password = args.get("password")
    if password:
        work.secret("database_password", str(password))
    else:
        # The plan always asks for this secret; libpq takes an empty one for none.
        work.secrets["database_password"] = ""
        work.warn(
            (*base, "args"),
            "no password: PostgreSQL trusts the local user, which M1 can use and M2 cannot, "
            "because Synapse then comes from another machine",
            f"before M2: ALTER ROLE {user} PASSWORD '...', a line for 127.0.0.1 in pg_hba.conf, "
            "and host and password under database.args; then adopt again",
        )
    if not host or str(host).startswith("/"):
        work.warn(
            (*base, "args", "host"), "PostgreSQL is reached through its UNIX socket",
            "before M2 it must listen on 127.0.0.1 as well (listen_addresses)",
        )
    if seen := _postgresql_version(work):
        result["version"] = seen
    return result


def _postgresql_version(work: Work) -> int:
    """The major version, which decides how M3 moves it; 0 when it was not asked."""
    number, wanted = work.found.get("postgresql_version"), releases.POSTGRESQL_MINIMUM
    if number is None:
        work.warn(
            "PostgreSQL", "its version was not asked",
            f"M1's precheck asks; it must be {wanted} or newer",
        )
    elif int(number) // 10000 < wanted:
        work.refuse(
            "PostgreSQL", f"it is {int(number) // 10000}; {work.target} wants {wanted} or newer",
            "upgrade PostgreSQL first; 1.40 runs on 15 as well",
        )
    return int(number or 0) // 10000


def _lost(work: Work, path: tuple[str | int, ...]) -> bool:
    row = work.verdicts.get(dotted(path))
    return row is not None and row.verdict == "cannot-carry"


def _engine(work: Work) -> str:
    section_ = work.values.get("database")
    several = work.values.get("databases")
    if section_ is None and isinstance(several, dict) and several:
        section_ = next(iter(several.values()))
    return str(section_.get("name", "sqlite3")) if isinstance(section_, dict) else "sqlite3"
