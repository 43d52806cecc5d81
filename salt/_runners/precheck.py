"""What speaks against a milestone: ``salt-run precheck.milestone m1``. Only reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import salt.version
import yaml
from saltworks import (
    bank,
    clustermap,
    milestone,
    parts,
    plan,
    precheck,
    precheck_facts,
    precheck_found,
    telling,
    verify,
)
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import MachineError, Machines
from saltworks.tree import Tree

__opts__: dict[str, Any]

#: Bounds in seconds: for a ping, and for each question to a machine.
PING_SECONDS, ASK_SECONDS = 10, 45

#: At once; the questions to one machine are few.
THREADS = 6

__func_alias__ = {"check": "milestone"}


@refusing
def check(name: str, first: Sequence[str] = ()) -> str:
    """Gather what a milestone depends on and judge it; nothing is changed.

    :param name: the milestone, such as ``m1``.
    :param first: parts of M3 that the same run moves before it.
    :returns: what was checked, and what is worth knowing.
    :raises saltworks.errors.Refused: with everything that speaks against it, at once.

    CLI Example:

    .. code-block:: bash

        salt-run precheck.milestone m1
    """
    if name not in precheck_facts.NEEDS:
        known = ", ".join(precheck_facts.NEEDS)
        raise Refused(name, [Problem("milestone", f"{name} is none", f"name one of {known}")])
    facts = _gathered(name, Tree.of(__opts__))
    survey = precheck.survey(name, facts, first)
    if survey.problems:
        raise Refused(name.capitalize(), survey.problems)
    machines = ", ".join(sorted(facts.machines))
    said = f"{name.capitalize()}: {survey.checks} checks on {machines}: nothing speaks against it"
    return "\n".join([said, *(f"  - {note}" for note in survey.notes)])


def _gathered(name: str, house: Tree) -> precheck_facts.Facts:
    unreadable: list[Problem] = []
    try:
        cmap = house.raw_map()
    except Refused as refusal:
        cmap, unreadable = None, list(refusal.problems)
    try:
        secrets = house.vault.names()
    except yaml.YAMLError as error:
        secrets = []
        unreadable.append(
            Problem(str(house.vault.path), f"is no YAML: {error}", "correct that line")
        )
    certificate = _certificate(house, secrets, unreadable)
    machines = Machines(__opts__)
    facts = precheck_facts.Facts(
        cmap=cmap,
        schema=house.schema(),
        secrets=secrets,
        accepted=machines.accepted(),
        record=bank.read(house.store, "milestones"),
        placement=bank.read(house.store, "placement"),
        telling=sorted(bank.read(house.store, telling.TOLD)),
        master_salt=salt.version.__version__,
        master_python=sys.version_info[:2],
        certificate=certificate,
        now=time.time(),
        unreadable=unreadable,
    )
    if isinstance(cmap, Mapping) and precheck_facts.text(cmap, "releases", "synapse"):
        facts = replace(facts, built=house.artifact(cmap) is not None)
    asked = {
        machine: words
        for machine, words in precheck_facts.questions(name, facts).items()
        if machine in facts.accepted
    }
    there = machines.answering(sorted(asked), PING_SECONDS) if asked else set()
    answers: dict[str, Any] = {
        machine: {"error": f"does not answer within {PING_SECONDS} s"}
        for machine in asked
        if machine not in there
    }
    with ThreadPoolExecutor(THREADS) as pool:
        # A new release of these modules must be there before they are asked.
        list(pool.map(lambda machine: _told(machine, "saltutil.sync_all"), sorted(there)))
        waiting = {
            machine: pool.submit(_machine, machine, asked[machine]) for machine in sorted(there)
        }
        found = pool.submit(_found, name, facts, there)
        move = pool.submit(_move, name, facts, there)
        answers.update({machine: future.result() for machine, future in waiting.items()})
        told = _asked_of_parts(name, house, facts, there)
        return replace(facts, machines=answers, told=told, **{**found.result(), **move.result()})


def _asked_of_parts(
    name: str, house: Tree, facts: precheck_facts.Facts, there: set[str]
) -> dict[str, Any]:
    """The answers to a milestone's own questions; none when the map is not sound."""
    asking = parts.asking(name)
    if asking is None or milestone.is_achieved(facts.record, name):
        return {}
    try:
        cmap = house.map()
    except Refused:
        return {}
    if cmap is None or clustermap.the_machine(cmap, asking.ROLE) is None:
        return {}
    asked = asking.questions(cmap, plan.Placement.recorded(cmap, facts.placement))
    told = {
        key: _told(ask.machine, ask.function, **ask.kwargs)
        for key, ask in asked.items()
        if ask.machine in there
    }
    return {key: answer.get("is", answer) for key, answer in told.items()}


def _certificate(
    house: Tree, secrets: Sequence[str], unreadable: list[Problem]
) -> dict[str, Any] | None:
    """The public certificate, and whether the key belongs to it; the key stays in the vault."""
    names = ("tls_certificate", "tls_key")
    if not set(names) <= set(secrets):
        return None
    try:
        return {"pem": house.vault.get(names[0]), "key_fits": house.vault.key_fits(*names)}
    except Refused as refusal:
        unreadable += refusal.problems
        return None


def _machine(machine: str, words: Mapping[str, Any]) -> dict[str, Any]:
    asked = time.time()
    answer = _told(machine, "machine_facts.read", **words)
    return (
        answer
        if "error" in answer
        else {"facts": answer["is"], "asked": asked, "answered": time.time()}
    )


def _found(name: str, facts: precheck_facts.Facts, there: set[str]) -> dict[str, Any]:
    """The found server's database and its way back, where the milestone upgrades it."""
    legacy = precheck_facts.of_role(facts.cmap, "legacy")
    config = precheck_facts.text(facts.cmap, "legacy", "config_path")
    if (
        not precheck_facts.NEEDS[name].upgrades
        or milestone.is_achieved(facts.record, name)
        or precheck_facts.is_managed(facts)
        or legacy not in there
        or config is None
    ):
        return {}
    assert legacy is not None
    with ThreadPoolExecutor(2) as pool:
        database = pool.submit(_told, legacy, "synapse_db.facts", config)
        backup = pool.submit(_backup, facts, legacy)
        told, way_back = database.result(), backup.result()
    if "error" in told:
        return {"database": told, "backup": way_back}
    return {
        "database": told["is"],
        "backup": way_back,
        "migration": _migration(facts, legacy, int(told["is"]["events"]), way_back),
    }


def _move(name: str, facts: precheck_facts.Facts, there: set[str]) -> dict[str, Any]:
    """What else serves on Synapse's new machine, and the database that stays behind."""
    needs, cmap = precheck_facts.NEEDS[name], facts.cmap
    if milestone.is_achieved(facts.record, name):
        return {}
    answers: dict[str, Any] = {}
    machine = precheck_facts.of_role(cmap, needs.alone) if needs.alone else None
    if machine in there:
        assert machine is not None
        told = _told(machine, "homeserver.audit", *verify.ALONE)
        answers["audit"] = told.get("is", told)
    legacy = precheck_facts.of_role(cmap, "legacy")
    config = precheck_facts.text(cmap, "legacy", "config_path")
    if precheck_facts.is_managed(facts):
        config = f"{plan.CONFIG_DIR}/homeserver.yaml"
    # Once Synapse has gone, its configuration is no longer there to be asked.
    at_home = facts.placement.get("synapse", legacy) == legacy
    if needs.leaves_database and at_home and legacy in there and config:
        assert legacy is not None
        told = _told(legacy, "synapse_db.facts", config)
        answers["database"] = told.get("is", told)
    return answers


def _backup(facts: precheck_facts.Facts, legacy: str) -> dict[str, Any]:
    directory = precheck_facts.text(facts.cmap, "backup", "directory")
    engine = precheck_facts.text(facts.cmap, "synapse", "database", "engine")
    port = precheck_facts.get(facts.cmap, "synapse", "database", "port")
    if directory is None or engine is None or not isinstance(port, int | None):
        return {}
    way_back = plan.backup(directory, facts.cmap["synapse"]["database"])
    kept, cluster = way_back["directory"], way_back["cluster"]
    sqlite = engine == "sqlite3"
    asked = (
        ["sqlitebackup.records", kept, way_back["live"]] if sqlite else ["pgbackup.records", kept]
    )
    told = _told(legacy, *asked).get("is") or {}
    record = told.get("manifest") or {}
    proof = (record and told.get("proof")) or {}
    row: dict[str, Any] = {
        "stands": bool(record),
        "schema": (record.get("schema") or {}).get("version"),
        "rehearsed": (proof.get("rehearsal") or {}).get("seconds"),
    }
    if sqlite:
        return row
    database = precheck_facts.text(facts.cmap, "synapse", "database", "name") or "synapse"
    if record:
        standing = _told(legacy, "pgbackup.standing", kept, database, cluster)
        if "error" in standing:
            return {**row, **standing}
        row["stands"] = not standing["is"][1]
    if not row["stands"]:
        checked = _told(legacy, "pgbackup.check", kept, database, cluster)
        if "error" in checked:
            return {**row, **checked}
        row["problems"] = checked["is"]
    return row


def _migration(
    facts: precheck_facts.Facts, legacy: str, events: int, backup: Mapping[str, Any]
) -> dict[str, Any] | None:
    rehearsed = backup.get("rehearsed")
    seconds = rehearsed if rehearsed is not None else precheck_found.estimate(events)
    choice = precheck_facts.get(facts.cmap, "upgrade", "background_updates")
    answer = _told(legacy, "synapse_db.migration_plan", seconds, events, choice=choice)
    # Only an unknown choice is refused there, and the map's schema says that already.
    return None if "error" in answer else {**answer["is"], "rehearsed": rehearsed}


def _told(machine: str, function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """``{"is": answer}``, or ``{"error": text}``; each thread has a client of its own."""
    try:
        machines = Machines(__opts__)
        return {"is": machines.call(machine, function, *args, timeout=ASK_SECONDS, **kwargs)}
    except MachineError as error:
        return {"error": str(error)}
