"""How the lab takes its old server through the milestones, for `make lab` and for the tests.

What an operator does is done here as one would: adopt, a few lines in the cluster map, one
`salt-run state.orchestrate` a milestone, and the move of the public name. Around it stand the
proofs: a witness that chats all the while, and a read-back before and after.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from saltworks import plan, worker_table

from tests.lab import legacy, people, readback, witness
from tests.lab.driver import PROJECT, AnewError, Lab, LabError, SaltRunError, wait_for
from tests.lab.driver.network import command_lines
from tests.lab.driver.progress import Say
from tests.lab.driver.saltaccess import OnEvent
from tests.lab.driver.settings import MASTER, WORKER_NETWORK
from tests.lab.witness_chat import POLL_SECONDS

Json = dict[str, Any]

MAP = "/srv/saltworks/pillar/cluster.sls"
SECRETS = "/srv/saltworks/pillar/secrets.sls"
PUBLIC_NAME = people.PUBLIC_URL.removeprefix("https://")

ORCHESTRATE_SECONDS = 900
READ_BACK_SECONDS = 300
WITNESS_SECONDS = 3600.0
#: By how much an answer may be late where both cores are busy: a poll that ends after the
#: announcement comes back on a connection that the reload is just closing.
SLOW_SECONDS = 3
EVENTS = 100
"""Events of each room that a read-back reads by id; all are in the history that it reads too."""

CHAT_REQUESTS = 100
"""Requests of the witness that the new front must have seen before a milestone is over."""

WITNESSED = (
    *("acknowledged", "delivered", "lost", "duplicated", "failed_requests"),
    *("worst_wait_seconds", "started", "finished"),
)
"""What a milestone's report must have from its witness."""

STATES = ("state.sls", "state.apply", "state.highstate")


@dataclass(frozen=True)
class Milestone:
    """A milestone as the lab sees it.

    worst_wait: seconds a request may take while it runs. before: whose read-back it is compared
    with. home and admin_url: the machine with Synapse afterwards, and its own address there.
    front: the machine that the public name points to when it is done. allowed: names of the rules
    by which a read-back may differ from the one before.
    """

    name: str
    worst_wait: float
    before: str
    home: str
    admin_url: str
    front: str
    allowed: frozenset[str] = frozenset()


OTHER_ENGINE = frozenset({"engine_booleans", "engine_search"})
"""What the move from SQLite to PostgreSQL may change for a client."""

NEW_RELEASE = frozenset(rule.name for rule in readback.WHITELIST) - OTHER_ENGINE
"""What the jump from 1.40 to the new release may change for a client."""

MILESTONES = {
    row.name: row
    for row in (
        Milestone("m1", 10.0, "m0", "legacy", legacy.ADMIN_URL, "legacy", NEW_RELEASE),
        Milestone("m2", 6.0, "m1", "synapse", f"http://198.18.0.12:{legacy.PORT}", "proxy"),
        Milestone(
            "m3", 6.0, "m2", "synapse", f"http://198.18.0.12:{legacy.PORT}", "proxy", OTHER_ENGINE
        ),
        Milestone("m4.workers", 6.0, "m3", "synapse", f"http://198.18.0.12:{legacy.PORT}", "proxy"),
        Milestone(
            *("m4.database", 6.0, "m4.workers", "synapse"),
            *(f"http://198.18.0.12:{legacy.PORT}", "proxy"),
        ),
    )
}


def adopt(lab: Lab, seed: Path, say: Say = lambda text: None) -> str:
    """The old server into map and secrets, and into the map what only its operator knows.

    Does what is missing only. Raises LabError with what adopt refused.
    """
    master = lab.machine(MASTER)
    said = "the map is there"
    if not master.run(["test", "-e", MAP], check=False).ok:
        say("salt-run adopt.homeserver")
        lab.access.answering([MASTER, "legacy"])
        lab.salt_run("adopt.homeserver", "legacy", "accepted=[enable_group_creation]", timeout=180)
        said = "map and secrets written"
    account = json.loads(seed.read_text())["verify"]
    edit_map(lab, lambda cluster: _operators_words(lab, cluster, account["localpart"]))
    if not master.run(["grep", "-qw", "verify_password", SECRETS], check=False).ok:
        say("salt-run secret.put verify_password")
        put_secret(lab, "verify_password", account["password"])
    return said


def _operators_words(lab: Lab, cluster: Json, account: str) -> None:
    # The lab has no way out: packages come from a folder, which adopt cannot know.
    cluster["build"] = {"find_links": ["/srv/mirror/wheels"], "no_index": True}
    cluster["verify"] = {"password_user": account}
    row = {"role": "master", "address": lab.settings.addresses[MASTER]}
    cluster["machines"].setdefault(MASTER, row)


def put_secret(lab: Lab, name: str, text: str) -> None:
    """A secret into the master's vault, by way of a file that is gone afterwards."""
    master = lab.machine(MASTER)
    path = f"/root/{name}"
    master.write(path, text, mode=0o600)
    try:
        lab.salt_run("secret.put", name, path, timeout=60)
    finally:
        master.run(["rm", "-f", path])


def declare(lab: Lab, machines: Mapping[str, Mapping[str, str]]) -> None:
    """Machines, by id, with role and address, into the cluster map."""
    rows = {name: dict(row) for name, row in machines.items()}
    edit_map(lab, lambda cluster: cluster["machines"].update(rows))


def rows(lab: Lab, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Machines of the lab's plan, each with the role that it is named after."""
    return {
        name: {"role": name.partition("-")[0], "address": lab.settings.addresses[name]}
        for name in names
    }


def expect_workers(lab: Lab) -> None:
    """Pools for the workers of the lab's plan, with a network that nobody else is in, declared."""
    words = {
        "workers": {kind: {"pool": f"{kind}-*"} for kind in worker_table.table().kinds},
        "worker_networks": [WORKER_NETWORK],
    }
    edit_map(lab, lambda cluster: cluster.update(words))


CLUSTER = ("dcs-1", "dcs-2", "dcs-3", "database-2")
"""Machines of the database's cluster beside the one that M3 has made."""


def expect_databases(lab: Lab) -> None:
    """The cluster's machines declared, with what a failover may lose: nothing."""
    declare(lab, rows(lab, CLUSTER))
    words = {"first": "database", "durability": "sync", "standby_reads": True}
    edit_map(lab, lambda cluster: cluster.update(database=words))


def edit_map(lab: Lab, change: Callable[[Json], None]) -> bool:
    """Lets `change` work on the cluster map; False if that made no difference."""
    master = lab.machine(MASTER)
    text = master.read(MAP)
    document = yaml.safe_load(text)
    change(document["cluster"])
    if document == yaml.safe_load(text):
        return False
    comments = [line for line in text.splitlines() if line.startswith("#")]
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    master.write(MAP, "\n".join([*comments, body]))
    return True


def status(lab: Lab) -> dict[str, dict[str, str]]:
    """The milestones' record, by name: state, when, verdict."""
    rows = lab.salt_run("milestone.status", timeout=60)["return"]
    return {str(row["milestone"]).lower(): row for row in rows}


def orchestrate(lab: Lab, name: str, say: Say = lambda text: None, test: bool = False) -> Json:
    """`salt-run state.orchestrate`, with each step said as it begins. Raises SaltRunError."""
    return lab.salt_run(
        "state.orchestrate", name, timeout=ORCHESTRATE_SECONDS, test=test, on_event=shown(say)
    )


def shown(say: Say) -> OnEvent:
    """A callback for the master's events that says which states begin on which machines."""

    def on_event(tag: str, data: Json) -> None:
        parts = tag.split("/")
        if parts[:2] != ["salt", "job"] or parts[3:] != ["new"] or data.get("fun") not in STATES:
            return
        words = [str(word) for word in data.get("arg", []) if isinstance(word, str)]
        what = words[0] if words and data["fun"] != "state.highstate" else "highstate"
        say(f"{', '.join(sorted(data.get('minions', [])))}: {what}")

    return on_event


@contextlib.contextmanager
def chatting(lab: Lab, seed: Path, out: Path, most: float = WITNESS_SECONDS) -> Iterator[None]:
    """The witness chats through the public name within the block; then its report is in `out`.

    most: seconds after which it stops by itself. A failed Salt run is witnessed to the end; after
    any other error there is no report.
    """
    _end_strays(out)
    options = ["--url", people.PUBLIC_URL, "--ca", str(lab.settings.ca), "--seed", str(seed)]
    options += ["--poll-seconds", str(_poll_seconds(lab)), "--seconds", str(most)]
    log = lab.settings.logs / f"witness-{out.stem}.log"
    chat = witness.WitnessProcess(options, out, log, lab.network.client())
    try:
        chat.start()
        try:
            yield
        except SaltRunError:
            # Without a report the failure itself still has to be told.
            with contextlib.suppress(RuntimeError):
                chat.stop()
            raise
        chat.stop()
    except RuntimeError as error:
        raise LabError(str(error)) from error
    finally:
        chat.kill()


def _poll_seconds(lab: Lab) -> int:
    """How long a poll of people may rest: those of before an announcement end within it."""
    cluster = yaml.safe_load(lab.machine(MASTER).read(MAP))["cluster"]
    return min(POLL_SECONDS, plan.announce_seconds(cluster) - SLOW_SECONDS)


def _end_strays(out: Path) -> None:
    """End witnesses of a run that was killed: they would write their report over ours."""

    def strays() -> list[int]:
        return [
            pid
            for pid, words in command_lines()
            if b"tests.lab.witness" in words and str(out).encode() in words
        ]

    for pid in strays():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not strays(), 30, "the witness of an earlier run to end")


def read_back(lab: Lab, seed: Path, out: Path, at: Milestone = MILESTONES["m1"]) -> Json:
    """Everything a client sees, as each user, into `out`. `at`: where Synapse is.

    Raises LabError with what the reader said.
    """
    words = ["--url", people.PUBLIC_URL, "--ca", str(lab.settings.ca), "--seed", str(seed)]
    words += ["--admin-url", at.admin_url, "--admin-pid", str(lab.machine(at.home).init())]
    words += ["--events", str(EVENTS), "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [*lab.network.client(), sys.executable, "-m", "tests.lab.readback", *words]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=READ_BACK_SECONDS, check=False
    )
    if done.returncode != 0:
        raise LabError(
            f"the read-back through {people.PUBLIC_URL} failed: {done.stderr.strip()[-2000:]}\n"
            f"again: {shlex.join(str(word) for word in command)}"
        )
    document: Json = json.loads(out.read_text())
    return document


def compared(milestone: Milestone, before: Json, after: Json) -> Json:
    """Two read-backs, before and after a milestone: what its own rules explain, and what not.

    ``explained`` counts the differences by the name of their rule, ``unexplained`` tells them.
    """
    rules = [rule for rule in readback.WHITELIST if rule.name in milestone.allowed]
    found = readback.compare(before, after, rules)
    known = Counter(row.allowed_by for row in found if row.allowed_by is not None)
    wrong = [str(row) for row in found if row.allowed_by is None]
    return {"explained": dict(sorted(known.items())), "unexplained": wrong}


def read_back_file(lab: Lab, after: str) -> Path:
    """Where the read-back after a milestone (`m0`: before all of them) is kept."""
    return lab.settings.reports / f"readback-{after}.json"


def report_file(lab: Lab, name: str) -> Path:
    """Where a milestone's report is kept."""
    return lab.settings.reports / f"{name}.json"


def report_of(lab: Lab, name: str) -> Json | None:
    """A milestone's report, None while there is none."""
    path = report_file(lab, name)
    return dict(json.loads(path.read_text())) if path.exists() else None


def conduct(lab: Lab, name: str, seed: Path, say: Say = lambda text: None) -> Json:
    """Takes the lab through a milestone under the eyes of the witness; returns its report.

    Raises LabError if the orchestration fails, or anything of the proof is not as it must be.
    """
    report = proof(lab, name, seed, say)
    judge(lab, name, report)
    return report


def proof(lab: Lab, name: str, seed: Path, say: Say = lambda text: None) -> Json:
    """Takes the lab through a milestone; returns the report, whatever it says.

    A milestone that is achieved is not done again: its report is the one that was kept. Raises
    LabError if the orchestration fails.
    """
    row = status(lab)[name]
    kept = report_of(lab, name)
    if row["state"] == "achieved" and kept is not None:
        say(f"achieved {row['when']}")
        return kept
    milestone = MILESTONES[name]
    before = _before(lab, milestone, seed, say)
    if row["state"] == "achieved":
        # Its run was cut between the record and the report; what is left to see is seen.
        say(f"achieved {row['when']}, its witness was cut short")
        report: Json = {}
    else:
        report = _witnessed(lab, milestone, seed, say)
    _point(lab, milestone)
    say("reading back everything")
    after = read_back(lab, seed, read_back_file(lab, name), milestone)
    report |= {
        "milestone": name,
        "worst_wait_allowed_seconds": milestone.worst_wait,
        "read_back": compared(milestone, before, after),
    }
    witness.write_report(report, report_file(lab, name))
    return report


def _before(lab: Lab, milestone: Milestone, seed: Path, say: Say) -> Json:
    kept = read_back_file(lab, milestone.before)
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    say("reading back everything, to compare with")
    at = MILESTONES.get(milestone.before, MILESTONES["m1"])
    return read_back(lab, seed, kept, at)


def _witnessed(lab: Lab, milestone: Milestone, seed: Path, say: Say) -> Json:
    # Half of a report must not look like a whole one to the next run.
    out = report_file(lab, milestone.name).with_suffix(".witness.json")
    say("the witness begins to chat")
    try:
        with chatting(lab, seed, out):
            orchestrate(lab, f"orch.{milestone.name}", say)
            _point(lab, milestone)
            say(f"chatting on: {CHAT_REQUESTS} requests more")
            _chat_on(lab, milestone.front)
            say("the witness looks whether all has arrived")
    except SaltRunError as error:
        raise LabError(f"{error}\n  what the witness saw: {out}") from error
    return dict(json.loads(out.read_text()))


def _point(lab: Lab, milestone: Milestone) -> None:
    lab.dns_point(PUBLIC_NAME, lab.settings.addresses[milestone.front])


def _chat_on(lab: Lab, front: str) -> None:
    """Waits until the front has answered some more requests of the witness."""
    machine = lab.machine(front)
    count = "cat /var/log/nginx/*access.log | grep -c ' /_matrix/' || true"
    begin = int(machine.run(count).stdout)
    machine.wait_for(
        f'test "$({count})" -ge {begin + CHAT_REQUESTS}',
        60,
        f"{CHAT_REQUESTS} more requests to reach the nginx",
    )


def judge(lab: Lab, name: str, report: Json) -> None:
    """Raises AnewError with all that is wrong with a milestone's report."""
    wrong = problems(name, report)
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise AnewError(
            f"{name.capitalize()} ran, but its proof failed:\n{lines}\n"
            f"  report: {report_file(lab, name)}\n"
            f"  witness: {lab.settings.logs}/witness-{name}.witness.log\n"
            "  It is achieved and is not done twice: `make clean-lab`, then `make lab`, try anew."
        )


def problems(name: str, report: Json) -> list[str]:
    """What in a milestone's report is not as it must be, a line each."""
    rows = report.get("read_back", {}).get("unexplained", [])
    wrong = [f"read back: {row}" for row in rows[:20]]
    if len(rows) > 20:
        wrong.append(f"read back: {len(rows) - 20} differences more")
    if missing := [key for key in WITNESSED if key not in report]:
        return [*wrong, f"its witness was cut short, nobody saw: {', '.join(missing)}"]
    return wrong + witness.verdict(report, MILESTONES[name].worst_wait)
