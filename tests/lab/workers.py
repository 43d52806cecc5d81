"""Machines of workers in the lab: invited, booted with their user-data alone, and waited for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import salt.cache
import salt.config
from saltworks import admission, bank, joins, lock, members, passes, registry, tree

from tests.lab import milestones, witness
from tests.lab.driver import Lab, LabError, wait_for
from tests.lab.driver.progress import Say
from tests.lab.driver.settings import MASTER

Json = dict[str, Any]

#: The release fetched and unpacked, the processes up, as far as main, and seen through the front.
#: For a stream writer clients are told half a minute before.
JOIN_SECONDS = 300
#: A drain waits for long polls, for at most 90 s.
LEAVE_SECONDS = 300
#: Reconcile looks each half minute, and asks the front whether a process answers.
LOSS_SECONDS = 150
#: A stream writer's coming and going restarts every process behind a held door.
WRITER_WAIT = 30.0

#: Between two looks at the records.
LOOK_SECONDS = 0.5

USER_DATA = "/var/lib/cloud/user-data"
#: What cloud-init makes of user-data like ours: the files, then the commands, at the first boot.
FIRST_BOOT = f"""\
#!/opt/salt/bin/python3
import os, subprocess, yaml
given = yaml.safe_load(open("{USER_DATA}"))
os.unlink("{USER_DATA}")
for row in given["write_files"]:
    with open(row["path"], "w") as out:
        os.chmod(row["path"], int(row["permissions"], 8))
        out.write(row["content"])
for command in given["runcmd"]:
    subprocess.run(command, check=True)
"""
PROGRAM = "/usr/local/sbin/first-boot"
UNIT = f"""\
[Unit]
Description=What cloud-init does with user-data
Wants=network-online.target
After=network-online.target salt-minion.service
ConditionPathExists={USER_DATA}

[Service]
Type=oneshot
ExecStart={PROGRAM}

[Install]
WantedBy=multi-user.target
"""


def invited(lab: Lab, name: str) -> None:
    """A new machine boots with nothing but the user-data of its invite."""
    answer = str(lab.salt_run("join.invite", name, timeout=60)["return"])
    text = lab.machine(MASTER).read(answer.rpartition(" ")[2])
    machine = lab.machine(name)
    machine.create()
    unit = "etc/systemd/system/first-boot.service"
    wanted = machine.root / "etc/systemd/system/multi-user.target.wants/first-boot.service"
    for path, content, mode in (
        (USER_DATA, text, 0o600),
        (PROGRAM, FIRST_BOOT, 0o755),
        (f"/{unit}", UNIT, 0o644),
    ):
        file = machine.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    wanted.symlink_to(f"/{unit}")
    lab.boot([name], answering=False)


def comes_again(lab: Lab, name: str) -> None:
    """A machine that was drained may come again, and its minion starts, as one that is booted."""
    machine = lab.machine(name)
    machine.run("systemctl stop salt-minion", timeout=120)
    begun = time.time()
    lab.salt_run("worker.undrain", name, timeout=60)

    def looked() -> bool:
        """The pass that this has poked has found it away, and the next may begin at once."""
        began = float(recorded(lab, members.PASSES)["began"])
        return begun <= began < time.time() - passes.SPACING_SECONDS

    wait_for(looked, 60, "reconcile to have looked", interval=LOOK_SECONDS)
    machine.run("systemctl start salt-minion")


def in_service(lab: Lab, name: str) -> None:
    """A machine is in service, whatever it did before; one that is gone has to run."""
    if not state(lab, name):
        invited(lab, name)
    elif name in recorded(lab, admission.OUT):
        comes_again(lab, name)
    await_joined(lab, name)


def record(root: Path, name: str) -> Json:
    """A record of the master whose files are below `root`, empty while there is none.

    Without `salt-run`, whose start would take a second of CPU from what is measured.
    """
    folder = str(root / tree.RECORDS.lstrip("/"))
    opts = dict(salt.config.DEFAULT_MASTER_OPTS)
    return bank.read(salt.cache.Cache(opts, cachedir=folder, driver="localfs"), name)


def recorded(lab: Lab, name: str) -> Json:
    """A record of the lab's master."""
    return record(lab.machine(MASTER).root, name)


def state(lab: Lab, name: str) -> str:
    """A worker's state by the registry; empty while it is no member."""
    member = registry.of(recorded(lab, registry.RECORD)).get(name)
    return member.state if member else ""


def await_joined(lab: Lab, name: str) -> Json:
    """The record of a join once that has come to its end. Raises LabError if the join failed."""

    def ended() -> Json:
        member = registry.of(recorded(lab, registry.RECORD)).get(name)
        row: Json = recorded(lab, joins.RECORD).get(name, {})
        if row.get("error"):
            raise LabError(f"{name}: {row['error']}")
        here = member is not None and member.state == "ready" and joins.finished(row, member)
        return row if here else {}

    found = wait_for(ended, JOIN_SECONDS, f"{name} to have joined", interval=LOOK_SECONDS)
    assert isinstance(found, dict)
    return found


def await_gone(lab: Lab, name: str, seconds: float) -> None:
    """Until a worker is gone, and all others have been told of it."""

    def gone() -> bool:
        return state(lab, name) == "gone" and not recorded(lab, lock.RECORD)

    wait_for(gone, seconds, f"{name} to be gone, and others told", interval=LOOK_SECONDS)


def drain(lab: Lab, name: str) -> float:
    """A machine leaves in peace; how many seconds that took."""
    begun = time.monotonic()
    lab.salt_run("worker.drain", name, timeout=60)
    await_gone(lab, name, LEAVE_SECONDS)
    return time.monotonic() - begun


def shown(lab: Lab, seed: Path, say: Say) -> str:
    """Two workers stay; a third comes by its invite, serves and leaves. People chat.

    What is done already is not done again. Raises LabError for anything lost or failed.
    """
    out, join = (lab.settings.reports / f"{name}.json" for name in ("workers", "join"))
    if not join.exists():
        with milestones.chatting(lab, seed, out):
            for name in STAYING:
                _comes(lab, name, say)
            _comes(lab, PASSING, say)
            found = joins.report(recorded(lab, joins.RECORD)[PASSING])
            say(f"{PASSING} leaves")
            drain(lab, PASSING)
        report = json.loads(out.read_text())
        wrong = witness.verdict(report, WRITER_WAIT)
        if cut := report["long_polls"]["cut"]:
            wrong.append(f"{cut} long polls were cut")
        if wrong:
            raise LabError(f"workers came and left, and people noticed: {wrong}; see {out}")
        witness.write_report(found, join)
    lab.boot([name for name in STAYING if not lab.machine(name).running], answering=False)
    told, seconds = json.loads(out.read_text()), json.loads(join.read_text())["total_seconds"]
    return (
        f"{', '.join(STAYING)} serve; {PASSING} joined in {seconds:.0f} s and left: "
        f"{told['acknowledged']} messages, {told['lost']} lost, {told['failed_requests']} failed"
    )


#: Who comes with the milestone, and stays; who comes after it, and stays; who leaves again.
FIRST = "sync-1"
STAYING, PASSING = ("writer-1", FIRST), "sync-2"


def _comes(lab: Lab, name: str, say: Say) -> None:
    if not state(lab, name):
        say(f"{name} is invited, and boots")
        invited(lab, name)
    elif not lab.machine(name).running:
        lab.boot([name], answering=False)
    await_joined(lab, name)
