"""The verdict on a milestone, from the outside: ``salt-run verify.milestone m1``."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from saltworks import bank, clustermap, meeting, milestone, parts, plan, verify
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.matrix import Client, MatrixError
from saltworks.meeting import Check
from saltworks.minions import MachineError, Machines
from saltworks.tree import Tree

__opts__: dict[str, Any]

#: How long Synapse may take to answer on its machine, and a machine to answer, in seconds.
HEALTHY_SECONDS, ASK_SECONDS = 30, 60

#: How long the public name may fail before that is the answer, in seconds.
NAME_SECONDS = 10

__func_alias__ = {"check": "milestone"}


@refusing
def check(name: str) -> str | dict[str, Any]:
    """Two users meet through the public name, and the machines serve what they should.

    :param name: the milestone, such as ``m1``.
    :returns: one line a check; with a failed one the run fails. A good one is kept for the
        milestone's record.

    CLI Example:

    .. code-block:: bash

        salt-run verify.milestone m1
    """
    if name not in verify.PROOFS:
        known = ", ".join(verify.PROOFS)
        raise Refused(name, [Problem("milestone", f"{name} is none", f"name one of {known}")])
    house = Tree.of(__opts__)
    cmap = house.map()
    if cmap is None:
        raise Refused(
            name.capitalize(),
            [Problem("pillar/cluster.sls", "there is no cluster map", "run adopt.homeserver")],
        )
    placement = house.placement(cmap)
    checks = [verify.placed(name, cmap, placement), *_machines(name, cmap, placement)]
    checks += _meeting(name, house, cmap, placement)
    text = verify.verdict(name, checks)
    if not all(row.ok for row in checks):
        return {"data": text, "retcode": 1}
    record = bank.read(house.store, "milestones")
    if name in record:
        row = milestone.verified(record, name, verify.summary(checks))
        bank.write(house.store, "milestones", {**record, name: row})
    return text


def _machines(name: str, cmap: clustermap.Map, placement: plan.Placement) -> list[Check]:
    proof = verify.PROOFS[name]
    roles = [role for role in (proof.alone, proof.emptied) if role]
    asking = parts.asking(name)
    proofs = asking.proofs(cmap, placement) if asking else {}
    asked = {placement.synapse, *(clustermap.the_machine(cmap, role) for role in roles)}
    asked |= {ask.machine for ask in proofs.values()}
    for each in sorted(filter(None, asked)):
        # What fails here fails below, with the check that it belongs to.
        _told(each, "saltutil.sync_modules")
    url = verify.local_url(cmap, placement)
    told = _told(placement.synapse, "homeserver.healthy", url, HEALTHY_SECONDS)
    checks = [verify.version(cmap, placement, told)]
    if proof.alone and (machine := clustermap.the_machine(cmap, proof.alone)):
        told = _told(machine, "homeserver.audit", *verify.may_serve(placement))
        checks.append(verify.alone(machine, told))
    if proof.emptied and (machine := clustermap.the_machine(cmap, proof.emptied)):
        programs = list(verify.SYNAPSE_PROGRAMS)
        told = _told(machine, "machine_facts.read", programs=programs)
        checks.append(verify.emptied(machine, told))
    if asking:
        answers = {
            key: _answer(ask.machine, ask.function, **ask.kwargs) for key, ask in proofs.items()
        }
        checks += asking.checks(cmap, placement, answers)
    return checks


def _meeting(
    name: str, house: Tree, cmap: clustermap.Map, placement: plan.Placement
) -> list[Check]:
    machines = Machines(__opts__)
    word = secrets.token_hex(5)
    names = [f"saltworks-verify-{word}-{who}" for who in ("host", "guest")]
    account = cmap.get("verify", {}).get("password_user")
    wanted = names[1:] if account else names
    try:
        made = machines.call_unrecorded(
            placement.synapse,
            "matrix_account.make",
            verify.local_url(cmap, placement),
            verify.config_path(cmap, placement),
            wanted,
            timeout=ASK_SECONDS,
        )
    except MachineError as error:
        return [Check("throw-away users", False, str(error))]
    front = clustermap.address(cmap, placement.front)
    resolved, by_name = _by_name(cmap, front, made[-1])
    record = bank.read(house.store, "milestones")
    held = meeting.hold(
        verify.base_url(cmap),
        password_user=(account, house.vault.get("verify_password")) if account else None,
        host=None if account else made[0],
        guest=made[-1],
        connect_to=None if verify.leads_to(resolved, front) else front,
        old_before=float(record.get(name, {}).get("started") or time.time()),
    )
    return [by_name, *held]


def _by_name(cmap: clustermap.Map, front: str, user: Mapping[str, Any]) -> tuple[list[str], Check]:
    """What the public name resolves to on the master, and whether it leads to our Synapse."""
    public = cmap["public"]["name"]
    try:
        found = socket.getaddrinfo(public, verify.public_port(cmap), type=socket.SOCK_STREAM)
    except OSError as error:
        return [], Check("public name", False, f"{public} cannot be resolved here: {error}")
    resolved = sorted({str(row[4][0]) for row in found})
    way = f"{public} is {', '.join(resolved)}"
    if not verify.leads_to(resolved, front):
        way += f", the front is {front}"
    try:
        with Client(
            verify.base_url(cmap),
            user["access_token"],
            timeout=NAME_SECONDS,
            retry_for=NAME_SECONDS,
        ) as client:
            who = client.whoami()["user_id"]
    except MatrixError as error:
        return resolved, Check("public name", False, f"{way}: {error}")
    if who != user["user_id"]:
        return resolved, Check("public name", False, f"{way}: another server answers there")
    return resolved, Check("public name", True, f"{way}, and leads to this server")


def _answer(machine: str, function: str, *args: Any, **kwargs: Any) -> Any:
    try:
        machines = Machines(__opts__)
        return machines.call(machine, function, *args, timeout=ASK_SECONDS, **kwargs)
    except MachineError as error:
        return {"error": str(error)}


def _told(machine: str, function: str, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    answer = _answer(machine, function, *args, **kwargs)
    return answer if isinstance(answer, Mapping) else {"error": f"{function}: {answer}"}
