"""The verdict on a milestone: what must be seen, and the text that says what was.

Pure; what is seen is gathered by the runner ``verify``. What each milestone must show
stands in :data:`PROOFS`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import clustermap, parts, plan
from .clustermap import Map
from .meeting import Check
from .parts.database import cluster
from .plan import Placement

#: Programs that are a Synapse main process, as words of a command line.
SYNAPSE_PROGRAMS = ("synapse.app.homeserver", "synapse_homeserver")

SSH_PORT = 22

#: What may run and listen where Synapse is alone: arguments of ``homeserver.audit``.
ALONE: tuple[list[str], list[int]] = ([plan.SERVICE], [SSH_PORT, plan.PORT, plan.POLL_PORT])


def may_serve(placement: Placement) -> tuple[list[str], list[int]]:
    """:data:`ALONE` as things stand: with Redis, Synapse answers its workers too."""
    units, ports = ALONE
    return units, [*ports, *([plan.MAIN_REPLICATION_PORT] if placement.redis else [])]



@dataclass(frozen=True)
class Proof:
    """What a milestone must show.

    :param synapse: role of the machine on which Synapse runs afterwards.
    :param front: role of the machine whose nginx takes the requests.
    :param alone: role of the machine on which nothing but Synapse may serve.
    :param emptied: role of the machine on which no Synapse may run any more.
    """

    synapse: str
    front: str
    alone: str | None = None
    emptied: str | None = None


PROOFS: Mapping[str, Proof] = {
    "m1": Proof(synapse="legacy", front="legacy"),
    "m2": Proof(synapse="synapse", front="proxy", alone="synapse", emptied="legacy"),
    **{
        part.MILESTONE: Proof(
            synapse="synapse",
            front="proxy",
            alone="synapse",
            emptied="legacy" if "legacy" in part.CONCERNS else None,
        )
        for part in parts.PARTS.values()
    },
    cluster.MILESTONE: Proof(synapse="synapse", front="proxy", alone="synapse"),
}

#: What to do about a failed check, by its name; those of the meeting as well.
NEXT_STEPS = {
    "placement": "run the milestone again, it goes on where it was",
    "version": "see journalctl -u synapse on that machine",
    "alone": "stop and disable what is named there, or move it to another machine",
    "emptied": "stop and disable the unit that is named, it works on the same database",
    "public name": "correct the name's record, the proxy in front, or the master's resolver",
    "throw-away users": "see journalctl -u synapse on Synapse's machine",
    "password login": "check the password module in synapse.modules, the directory behind it, "
    "verify.password_user and the secret verify_password",
    "directory": "see journalctl -u slapd on the machine that is named, then run it again",
    "media up": "check client_max_body_size and the owner of the media store",
    "media down": "check the owner and the content of the media store",
    "thumbnail": "check the owner of the media store, then journalctl -u synapse",
    "redis": "see journalctl -u redis-server on its machine, and -u synapse on Synapse's",
    "media store": "see journalctl -u saltworks-storage on its machine, then run this again",
    "old data": "compare the database and the media with the backup before anything else",
    "new database": "see PostgreSQL's log on its machine, and pgstandby.status there",
    "etcd": "see journalctl -u etcd on the machine that is named",
    "database cluster": "salt-run database.status; see journalctl -u patroni on its machines",
    "old database": "see PostgreSQL's log there, then run orch.m3.database; without it there is "
    "no way back",
    "content": "go back by orch.m3.database.rollback, keep both machines as they are, and ask",
    "goodbye": "deactivate the users saltworks-verify-* by the admin API",
}

#: For all others: the request went through the front to Synapse and did not come back right.
NEXT_STEP = "see journalctl -u synapse, and nginx's error log on the front machine"


def base_url(cmap: Map) -> str:
    """The public address that clients use."""
    ports = cmap["public"]["ports"]
    port = "" if 443 in ports else f":{ports[0]}"
    return f"https://{cmap['public']['name']}{port}"


def public_port(cmap: Map) -> int:
    """The port of :func:`base_url`."""
    ports = cmap["public"]["ports"]
    return 443 if 443 in ports else int(ports[0])


def local_url(cmap: Map, placement: Placement) -> str:
    """Where Synapse answers on the machine it runs on."""
    if not placement.managed:
        listener = cmap["legacy"]["listener"]
        return f"http://{listener['address']}:{listener['port']}"
    if placement.synapse == cmap["legacy"]["minion"]:
        return f"http://127.0.0.1:{plan.PORT}"
    return f"http://{clustermap.address(cmap, placement.synapse)}:{plan.PORT}"


def config_path(cmap: Map, placement: Placement) -> str:
    """The homeserver.yaml that Synapse reads."""
    if placement.managed:
        return f"{plan.CONFIG_DIR}/homeserver.yaml"
    return str(cmap["legacy"]["config_path"])


def placed(name: str, cmap: Map, placement: Placement) -> Check:
    """Whether Synapse and its front are recorded where the milestone puts them."""
    proof = PROOFS[name]
    synapse = clustermap.the_machine(cmap, proof.synapse)
    front = clustermap.the_machine(cmap, proof.front)
    wrong = []
    if not placement.managed:
        wrong.append("the Synapse that was found is still what runs")
    if placement.synapse != synapse:
        wrong.append(f"Synapse is on {placement.synapse}, not on {synapse}")
    if placement.front != front:
        wrong.append(f"the front is on {placement.front}, not on {front}")
    part = parts.of_milestone(name)
    if part is not None:
        wanted = "" if part.idle(cmap) else clustermap.the_machine(cmap, part.ROLE)
        found = getattr(placement, part.NAME)
        if found != wanted:
            wrong.append(f"{part.NAME} is {f'on {found}' if found else 'where it was found'}")
    seen = f"Synapse is on {placement.synapse}, the front on {placement.front}"
    return Check("placement", not wrong, "; ".join(wrong) or seen)


def version(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> Check:
    """Whether Synapse answers on its machine, with the release that is declared.

    :param told: ``homeserver.healthy``'s answer, or ``{"error": text}``.
    """
    if "error" in told:
        return Check("version", False, str(told["error"]))
    wanted, found = cmap["releases"]["synapse"], str(told["version"])
    if placement.managed and found != wanted:
        return Check("version", False, f"Synapse is {found}, {wanted} is declared")
    return Check("version", True, f"Synapse {found} on {placement.synapse}")


def alone(machine: str, told: Mapping[str, Any]) -> Check:
    """Whether nothing but Synapse, ssh and salt-minion serves on a machine.

    :param told: ``homeserver.audit``'s answer, or ``{"error": text}``.
    """
    if "error" in told:
        return Check("alone", False, str(told["error"]))
    found = strangers(told)
    rows = [*found["listeners"], *found["services"]]
    if rows:
        return Check("alone", False, f"{machine}: {'; '.join(rows)}")
    return Check("alone", True, f"{machine} serves nothing but Synapse, ssh and salt-minion")


def strangers(told: Mapping[str, Any]) -> dict[str, list[str]]:
    """The answer of ``homeserver.audit`` in words: ``listeners`` and ``services``."""
    return {
        "listeners": [
            f"{row['by'] or 'somebody'} listens on {row['address']}:{row['port']} "
            f"({row['protocol']})"
            for row in told["listeners"]
        ],
        "services": [f"{unit} runs" for unit in told["services"]],
    }


def emptied(machine: str, told: Mapping[str, Any]) -> Check:
    """Whether no Synapse runs on a machine any more.

    :param told: ``machine_facts.read``'s answer for ``SYNAPSE_PROGRAMS``, or ``{"error": text}``.
    """
    if "error" in told:
        return Check("emptied", False, str(told["error"]))
    units = sorted({unit for found in told["programs"].values() for unit in found})
    if units:
        return Check("emptied", False, f"{machine}: Synapse runs in {', '.join(units)}")
    return Check("emptied", True, f"no Synapse runs on {machine}")


def leads_to(resolved: Collection[str], front: str) -> bool:
    """Whether the public name, as resolved, is the front machine itself."""
    return front in resolved


def summary(checks: Sequence[Check]) -> str:
    """The verdict in one line, for the record: how many checks, and which release where."""
    bad = [check for check in checks if not check.ok]
    if bad:
        return f"is not verified: {len(bad)} of {len(checks)} checks failed"
    seen = [check.detail for check in checks if check.check == "version"]
    return ", ".join([f"verified: {len(checks)} checks", *seen])


def verdict(name: str, checks: Sequence[Check]) -> str:
    """The operator's text: one line a check, the failed ones first and with a next step."""
    bad = [check for check in checks if not check.ok]
    head = f"{name.capitalize()} {summary(checks)}"
    return "\n".join([head, *_lines(bad, "FAILED "), *_lines([c for c in checks if c.ok], "")])


def _lines(checks: Iterable[Check], mark: str) -> list[str]:
    return [
        f"  - {mark}{check.check}: {check.detail}"
        + ("" if check.ok else f" -> {NEXT_STEPS.get(check.check, NEXT_STEP)}")
        for check in checks
    ]
