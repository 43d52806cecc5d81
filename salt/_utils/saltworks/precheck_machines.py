"""The part of a precheck that is about machines: answer, versions, clock, room, ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import plan
from . import precheck_facts as shared
from .precheck_facts import MIB, Facts, Needs, Survey
from .precheck_found import has_moved
from .releases import PYTHON_MINIMUM, dotted


def check(made: Survey, name: str, needs: Needs, facts: Facts, *, sound: bool, done: bool) -> None:
    """Check every machine that the milestone needs and that is accepted.

    :param sound: the map has no problem.
    :param done: the milestone is achieved: only what still matters is checked.
    """
    rows = shared.declared(facts.cmap, needs.roles)
    master = shared.of_role(facts.cmap, "master")
    built_on = _facts_of(facts, master) if master else None
    for machine, row in rows.items():
        known = facts.machines.get(machine)
        if known is None:
            # Its key is not accepted, which the map's checks say.
            continue
        if not made.must(
            "error" not in known,
            machine,
            str(known.get("error")),
            f"start its salt-minion, see that it reaches the master, then salt {machine} test.ping",
        ):
            continue
        found = known["facts"]
        _versions(made, machine, row["role"], needs, found, built_on)
        if not done:
            _clock(made, machine, known)
            _address(made, machine, row["address"], found)
            _room(made, machine, row["role"], needs, facts, found)
            _ports(made, machine, row["role"], needs, facts, found)


def salt_python(made: Survey, place: str, version: tuple[int, ...]) -> None:
    """Check the Python that Salt runs with.

    :param place: the machine, or the master.
    """
    wanted = ".".join(map(str, shared.SALT_PYTHON))
    made.must(
        version >= shared.SALT_PYTHON,
        place,
        f"its Salt runs with Python {'.'.join(map(str, version)) or 'of unknown version'}, the "
        f"project's modules need {wanted}",
        f"install Salt there with Python {wanted} or newer (salt-call --versions-report shows it)",
    )


def _facts_of(facts: Facts, machine: str) -> Mapping[str, Any] | None:
    found = facts.machines.get(machine, {}).get("facts")
    return found if isinstance(found, Mapping) else None


def _versions(
    made: Survey,
    machine: str,
    role: str,
    needs: Needs,
    found: Mapping[str, Any],
    built_on: Mapping[str, Any] | None,
) -> None:
    line = f"{shared.SALT_LINE}.{shared.SALT_MINIMUM}"
    made.must(
        shared.is_supported_salt(str(found["salt"])),
        machine,
        f"runs Salt {found['salt']}",
        f"install salt-minion {line} or newer of the {shared.SALT_LINE} LTS",
    )
    salt_python(made, machine, tuple(found["salt_python"]))
    if role not in needs.runs_synapse:
        return
    system = found["os"]
    made.must(
        system["family"] == "Debian",
        machine,
        f"runs {system['name'] or 'an unknown system'}",
        "use a machine with Debian 12 or newer",
    )
    python = tuple(found["python"] or ())
    shown = ".".join(map(str, python)) or "none"
    wanted = dotted(PYTHON_MINIMUM)
    made.must(
        python >= PYTHON_MINIMUM,
        machine,
        f"the system's Python is {shown}, Synapse needs {wanted}",
        "upgrade the machine to Debian 12 or newer first",
    )
    if built_on is None:
        return
    made.must(
        found["arch"] == built_on["arch"],
        machine,
        f"its CPU is {found['arch']}, the master's {built_on['arch']}: the release is built there",
        "use a master of the same architecture",
    )
    # The archive is a virtual environment: it runs with the very Python it was made for.
    made.must(
        not python or python == tuple(built_on["python"] or ()),
        machine,
        f"the system's Python is {shown}, the master's, which builds the release, "
        f"{'.'.join(map(str, built_on['python'] or ('none',)))}",
        "bring both to the same Debian release",
    )


def _clock(made: Survey, machine: str, known: Mapping[str, Any]) -> None:
    at = float(known["facts"]["time"])
    # Between question and answer any time is right.
    apart = max(known["asked"] - at, at - known["answered"], 0.0)
    ahead = "ahead of" if at > known["answered"] else "behind"
    made.must(
        apart <= shared.CLOCK_SECONDS,
        machine,
        f"its clock is {apart:.1f} s {ahead} the master's",
        "let both follow a time server (systemctl enable --now systemd-timesyncd)",
    )


def _address(made: Survey, machine: str, address: str, found: Mapping[str, Any]) -> None:
    made.must(
        address in found["addresses"],
        f"cluster.machines.{machine}.address",
        f"is {address}, the machine has {', '.join(found['addresses']) or 'none'}",
        "write the one by which the other machines reach it",
    )


def _room(
    made: Survey,
    machine: str,
    role: str,
    needs: Needs,
    facts: Facts,
    found: Mapping[str, Any],
) -> None:
    wanted: dict[int, list[tuple[str, int, str]]] = {}
    for path, size, what in _wishes(role, needs, facts, made):
        room = found["free"].get(path)
        if room is not None and size > 0:
            wanted.setdefault(room["device"], []).append((path, size, what))
    for rows in wanted.values():
        # What lies on one file system shares its room.
        room = found["free"][rows[0][0]]
        size = sum(row[1] for row in rows)
        made.must(
            room["bytes"] >= size,
            f"{machine}: {', '.join(dict.fromkeys(row[0] for row in rows))}",
            f"{room['bytes'] // MIB} MiB free, {-(-size // MIB)} MiB needed for "
            f"{' and '.join(row[2] for row in rows)}",
            "make room, or mount a larger file system there",
        )


def _wishes(role: str, needs: Needs, facts: Facts, made: Survey) -> Iterator[tuple[str, int, str]]:
    """Folder, bytes and purpose of all that is put on a role's machine."""
    if role == "master" and not facts.built:
        yield plan.ARTIFACTS_DIR, shared.RELEASE_BYTES // 2, "the release's archive"
        yield plan.RELEASES_DIR, shared.RELEASE_BYTES, "building the release"
    if role == "legacy" and needs.upgrades and not shared.is_managed(facts):
        yield plan.RELEASES_DIR, shared.RELEASE_BYTES, "the release"
        yield from _sqlite_copies(facts)
    if role == needs.receives_media and facts.placement.get("synapse") != shared.of_role(
        facts.cmap, role
    ):
        yield plan.RELEASES_DIR, shared.OWN_BYTES, "the release and its logs"
        yield plan.MEDIA_DIR, _media_to_come(facts, role, made), "the media"
        size = _tree(facts, "legacy", shared.text(facts.cmap, "synapse", "database", "path"))
        # Fetched, then put in place as a copy.
        yield plan.DATA_DIR, 2 * size.get("bytes", 0), "the database and its copy"


def _sqlite_copies(facts: Facts) -> Iterator[tuple[str, int, str]]:
    database = facts.database or {}
    directory = shared.text(facts.cmap, "backup", "directory")
    # For PostgreSQL pgbackup.check knows what the backup needs. The copies are taken anew in
    # each run, until the schema has moved on: then they are the way back, and stand.
    if database.get("engine") == "sqlite" and directory and not has_moved(facts):
        yield directory, int(2.5 * database["bytes"]) + 64 * MIB, "the backup and its proof"


def _media_to_come(facts: Facts, role: str, made: Survey) -> int:
    path = shared.text(facts.cmap, "legacy", "media_store_path")
    size = _tree(facts, "legacy", path)
    if not size:
        return 0
    there = int(_tree(facts, role, plan.MEDIA_DIR).get("bytes", 0))
    if not size["complete"]:
        made.notes.append(
            f"the media in {path} are more than {size['bytes'] // MIB} MiB; measuring them all "
            "takes longer than a precheck may: see that the new machine has room (du -sh)"
        )
    return max(0, int(size["bytes"] * 1.1) - there)


def _tree(facts: Facts, role: str, path: str | None) -> Mapping[str, Any]:
    machine = shared.of_role(facts.cmap, role)
    found = _facts_of(facts, machine) if machine else None
    size = (found or {}).get("trees", {}).get(path)
    return size if isinstance(size, Mapping) else {}


def _ports(
    made: Survey,
    machine: str,
    role: str,
    needs: Needs,
    facts: Facts,
    found: Mapping[str, Any],
) -> None:
    for port, kind, holders in shared.port_uses(needs, role, facts):
        strangers = [
            row["unit"] or row["program"] or "the kernel"
            for row in found["listeners"]
            if row["port"] == port and not row["unit"].startswith(holders)
        ]
        made.must(
            not strangers,
            f"{machine}: port {port}",
            f"is held by {', '.join(sorted(set(strangers)))}, {kind} needs it",
            "stop that service there, or give it another port",
        )
