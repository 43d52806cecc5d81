"""Prechecks: from facts gathered beforehand to everything that speaks against a milestone.

Pure. A bad cluster map does not end the checks: those that it still allows are made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import (
    clustermap,
    milestone,
    parts,
    plan,
    precheck_certificate,
    precheck_found,
    precheck_machines,
    precheck_move,
)
from .errors import Problem
from .precheck_facts import (
    NEEDS,
    SALT_LINE,
    SALT_MINIMUM,
    Facts,
    Needs,
    Survey,
    declared,
    get,
    is_supported_salt,
    of_role,
    text,
)


def problems(name: str, facts: Facts) -> list[Problem]:
    """Everything that speaks against a milestone, at once; see :func:`survey`."""
    return survey(name, facts).problems


def survey(name: str, facts: Facts, first: Collection[str] = ()) -> Survey:
    """Check a milestone.

    :param name: the milestone, such as ``m1``.
    :param first: parts of M3 that the same run moves before it.
    :returns: problems, each once and in order, notes, and how many checks were made.
    :raises KeyError: for a name that is no milestone.
    """
    needs = NEEDS[name]
    done = milestone.is_achieved(facts.record, name)
    made = Survey()
    wrong = milestone.order_problems(facts.record, name)
    made.checks += 1
    made.problems += wrong + list(facts.unreadable)
    sound = _map(made, facts)
    _roles(made, name, needs, facts, sound=sound)
    _verification(made, facts)
    made.must(
        is_supported_salt(facts.master_salt),
        "master",
        f"runs Salt {facts.master_salt}",
        f"install Salt {SALT_LINE}.{SALT_MINIMUM} or newer of the {SALT_LINE} LTS",
    )
    precheck_machines.salt_python(made, "master", facts.master_python)
    precheck_certificate.check(made, facts, done=done)
    precheck_machines.check(made, name, needs, facts, sound=sound, done=done)
    if needs.upgrades and not done:
        precheck_found.check(made, name, facts)
    if sound:
        placement = plan.Placement.recorded(facts.cmap, facts.placement)
        made.checks += 1
        made.problems += parts.begin_problems(name, placement, done, first)
    made.checks += 1
    made.problems += parts.telling_problems(facts.telling)
    if not done:
        precheck_move.check(made, needs, facts)
        _part(made, name, facts, sound=sound)
    made.problems = sorted(set(made.problems))
    return made


def _part(made: Survey, name: str, facts: Facts, *, sound: bool) -> None:
    """What a milestone's own module says; it needs a map without a problem."""
    part, asking = parts.of_milestone(name), parts.asking(name)
    if asking is None or not sound:
        return
    if part and (idle := part.idle(facts.cmap)):
        made.notes.append(f"nothing to move: {idle}")
    if of_role(facts.cmap, asking.ROLE) is None:
        return
    placement = plan.Placement.recorded(facts.cmap, facts.placement)
    made.checks += len(facts.told)
    made.problems += asking.problems(facts.cmap, placement, facts.told)


def _map(made: Survey, facts: Facts) -> bool:
    made.checks += 1
    if facts.cmap is None:
        if not facts.unreadable:
            made.problems.append(
                Problem(
                    "pillar/cluster.sls",
                    "there is no cluster map",
                    "run salt-run adopt.homeserver <minion> for the server as it stands",
                )
            )
        return False
    given = {"minions": facts.accepted, "secrets": facts.secrets}
    wrong = clustermap.problems(facts.cmap, facts.schema, **given)
    if isinstance(facts.cmap, Mapping):
        # A wrong shape ends that list early; what is well formed is judged all the same.
        every = {row["role"] for row in _role_rows(facts.cmap)}
        whole = {**facts.cmap, "machines": declared(facts.cmap, every)}
        wrong += clustermap.problems(whole, {}, **given)
    legacy, minion = of_role(facts.cmap, "legacy"), text(facts.cmap, "legacy", "minion")
    made.must(
        not (legacy and minion) or minion in declared(facts.cmap, ("legacy",)),
        "cluster.legacy.minion",
        f"is {minion}, which is not the machine with the role legacy ({legacy})",
        "give both the same id",
    )
    made.problems += wrong
    return not wrong


def _role_rows(cmap: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = cmap.get("machines")
    values = rows.values() if isinstance(rows, Mapping) else ()
    return [row for row in values if isinstance(row, Mapping) and isinstance(row.get("role"), str)]


def _roles(made: Survey, name: str, needs: Needs, facts: Facts, *, sound: bool) -> None:
    if facts.cmap is None:
        return
    idle = {part.ROLE for part in parts.PARTS.values() if sound and part.idle(facts.cmap)}
    for role in needs.roles:
        # The map itself must have a legacy machine; that it has none is said above.
        made.must(
            role == "legacy"
            or role in idle
            or of_role(facts.cmap, role) is not None,
            "cluster.machines",
            f"no machine has the role {role}, which {name.capitalize()} needs",
            f"add one: <minion id>: {{role: {role}, address: <its IP address>}}",
        )


def _verification(made: Survey, facts: Facts) -> None:
    """What the verdict at the end will need; better missed now than after the window."""
    if not isinstance(facts.cmap, Mapping):
        return
    made.must(
        bool(get(facts.cmap, "synapse", "settings", "registration_shared_secret")),
        "cluster.synapse.settings.registration_shared_secret",
        "is missing; the verdict's throw-away users are made by it",
        "write {secret: registration_shared_secret} there and put a long random word with "
        "salt-run secret.put; give macaroon_secret_key a value of its own as well",
    )
    account = text(facts.cmap, "verify", "password_user")
    made.must(
        account is None or "verify_password" in facts.secrets,
        "pillar/secrets.sls",
        f"the secret verify_password, the password of {account}, is missing",
        "salt-run secret.put verify_password <file>, or remove verify.password_user",
    )
