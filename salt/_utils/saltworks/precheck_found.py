"""The part of a precheck that is about the server as it was found, and its database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import precheck_facts as shared
from .precheck_facts import Facts, Survey
from .releases import POSTGRESQL_MINIMUM, SQLITE_MINIMUM, dotted

#: A cautious guess until the rehearsal has measured it: seconds of a migration whatever
#: the size, and events a second after that.
MIGRATION_SECONDS, MIGRATION_EVENTS = 5.0, 5000


def estimate(events: int) -> float:
    """How long the migration may take, in seconds, before a rehearsal has shown it."""
    return MIGRATION_SECONDS + events / MIGRATION_EVENTS


def check(made: Survey, name: str, facts: Facts) -> None:
    """Check the found server, as far as it is still what runs.

    :param name: the milestone that upgrades it.
    """
    if shared.is_managed(facts):
        made.notes.append("our release runs already: the found server is not checked again")
        return
    machine = shared.of_role(facts.cmap, "legacy")
    known = facts.machines.get(machine or "", {}).get("facts")
    moved = has_moved(facts)
    if machine and known:
        _unit(made, machine, name, facts, known, moved)
        _configs(made, machine, facts, known)
    if machine and facts.database is not None:
        _database(made, machine, facts.database, moved)
        _backup(made, machine, facts.backup or {})
    _migration(made, facts, moved)


def has_moved(facts: Facts) -> bool:
    """Whether a run that died has begun to migrate: the schema is newer than the backup's."""
    now = ((facts.database or {}).get("schema") or {}).get("version")
    then = (facts.backup or {}).get("schema")
    return isinstance(now, int) and isinstance(then, int) and now > then


def _unit(
    made: Survey, machine: str, name: str, facts: Facts, known: Mapping[str, Any], moved: bool
) -> None:
    unit = shared.text(facts.cmap, "legacy", "unit")
    if unit is None:
        return
    state = known["units"].get(unit, "unknown")
    begun = facts.record.get(name, {}).get("state") == "running"
    if state != "active" and (begun or moved):
        made.notes.append(f"{unit} on {machine} is {state}: a run of {name.capitalize()} goes on")
        return
    made.must(
        state == "active",
        f"{machine}: {unit}",
        f"the server that was found is {state}",
        f"start it (systemctl start {unit}) and see that it works, or adopt what runs instead",
    )


def _configs(made: Survey, machine: str, facts: Facts, known: Mapping[str, Any]) -> None:
    hashes = shared.get(facts.cmap, "legacy", "config_sha256")
    for path, digest in sorted(hashes.items()) if isinstance(hashes, Mapping) else ():
        now = known["configs"].get(path)
        made.must(
            now == digest,
            f"{machine}: {path}",
            "was changed since it was adopted" if now else "is gone, or cannot be read",
            "put it back as it was, or take the change over: "
            f"salt-run adopt.homeserver {machine} overwrite=True",
        )


def _database(made: Survey, machine: str, found: Mapping[str, Any], moved: bool) -> None:
    place = f"{machine}: database"
    if not made.must(
        "error" not in found,
        place,
        str(found.get("error")),
        "see that the database runs and that homeserver.yaml's account reaches it",
    ):
        return
    if found["engine"] == "sqlite":
        version = tuple(int(part) for part in str(found["server_version"]).split("."))
        made.must(
            version >= SQLITE_MINIMUM,
            place,
            f"SQLite is {found['server_version']}, the new release needs {dotted(SQLITE_MINIMUM)}",
            "upgrade the machine to Debian 12 or newer first",
        )
    else:
        _postgresql(made, place, found)
    schema = found["schema"]
    if not made.must(
        schema is not None,
        place,
        "holds no schema of Synapse",
        "see that homeserver.yaml names the database that the server uses",
    ):
        return
    pending = [] if moved else list(schema["pending"])
    shown = ", ".join(pending[:5]) + (" ..." if len(pending) > 5 else "")
    made.must(
        not pending,
        place,
        f"{len(pending)} background updates of the old release wait: {shown}",
        "let the old Synapse run until the table background_updates is empty; "
        "a newer schema on top of them breaks the database",
    )
    tables = list(found.get("foreign_tables") or [])
    role = found.get("role") or {}
    made.must(
        not tables,
        place,
        f"tables are not its role's own: {', '.join(tables[:5])}",
        f"ALTER TABLE <table> OWNER TO {role.get('name')}; a migration cannot alter them",
    )
    made.must(
        bool(role.get("may_create", True)),
        place,
        f"the account {role.get('name') or 'of Synapse'} may create nothing in it",
        "GRANT CREATE ON SCHEMA public to it (SQLite: let the user write the folder)",
    )


def _postgresql(made: Survey, place: str, found: Mapping[str, Any]) -> None:
    version = int(found["server_version"]) // 10000
    made.must(
        version >= POSTGRESQL_MINIMUM,
        place,
        f"PostgreSQL is {version}, the new release needs {POSTGRESQL_MINIMUM} or newer",
        "upgrade the cluster first (pg_upgradecluster), with the old Synapse on it",
    )
    made.must(
        found["encoding"] == "UTF8",
        place,
        f"its encoding is {found['encoding']}, the new release needs UTF8",
        "dump it and load it into one made with ENCODING UTF8 TEMPLATE template0",
    )
    made.must(
        (found["collate"], found["ctype"]) == ("C", "C"),
        place,
        f"its collation is {found['collate']}, ctype {found['ctype']}; the new release needs C",
        "dump it and load it into one made with LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )


def _backup(made: Survey, machine: str, found: Mapping[str, Any]) -> None:
    place = f"{machine}: backup"
    for text in [found["error"]] if "error" in found else found.get("problems", []):
        what, _, step = str(text).rpartition("; ")
        made.must(False, place, what or str(text), step if what else "see that, then run it again")
    if found and not found.get("problems") and "error" not in found:
        made.checks += 1


def _migration(made: Survey, facts: Facts, moved: bool) -> None:
    plan = facts.migration
    if plan is None or moved:
        return
    seconds = plan.get("rehearsed")
    if plan["way"] == "needs-choice":
        basis = "was rehearsed" if seconds is not None else "is guessed from the number of events"
        made.must(
            False,
            "cluster.upgrade.background_updates",
            f"nobody has chosen how the database is migrated; the time {basis}: {plan['words']}",
            "write `upgrade: {background_updates: offline}` or online into the cluster map",
        )
        return
    made.checks += 1
    if seconds is not None:
        made.notes.append(f"the {plan['way']} migration was rehearsed: {seconds:.1f} s")
    else:
        made.notes.append(
            f"the migration will be {plan['way']}, a minute or less by the number of events; "
            "the rehearsal on the restored backup measures it before the window"
            if plan["way"] == "offline" and plan.get("seconds", 0) <= 60
            else f"the migration will be {plan['way']}, as chosen; the rehearsal on the restored "
            "backup measures it before the window"
        )
