"""The seeded legacy machine (M0), made once and kept as an overlay layer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab import legacy, people
from tests.lab.client import ROOT
from tests.lab.driver import Lab
from tests.lab.driver.cache import made

MACHINE = "legacy"
MESSAGES = 2000
SEED_SECONDS = 600

# The machine's identity, which the driver writes anew for each machine, and Salt's own.
NOT_KEPT = (
    "/etc/salt",
    "/etc/machine-id",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ssh/ssh_host_*",
    "/var/log/salt",
    "/var/log/journal",
    "/var/cache/salt",
    "/var/cache/apt/archives/*.deb",
)


@dataclass(frozen=True)
class M0:
    """A seeded legacy machine. layer: to be laid over the base image; seed: its seed.json."""

    layer: Path
    seed: Path


def m0(
    lab: Lab,
    database: legacy.Database = "postgresql",
    messages: int = MESSAGES,
    say: Callable[[str], None] = lambda text: None,
) -> M0:
    """The cached M0, made in this lab's machine `legacy` if it is not there yet.

    Making it takes some two and a half minutes, and wants that machine not to exist; afterwards
    it does not exist either, so that it is created over the layer like any other time.
    Raises RuntimeError if it exists, and what the machine and the seed raise.
    """
    lab.network_up()
    inputs = {
        **legacy.m0_inputs(database, lab.images.base().name, messages),
        "packages": [lab.mirror.legacy().name, lab.mirror.debs().name],
        "authority": hashlib.sha256(lab.settings.ca.read_bytes()).hexdigest(),
    }

    def make(folder: Path) -> None:
        _make(lab, database, messages, say, folder)

    path = made(lab.settings.cache, "m0", inputs, make)
    return M0(path / "layer", path / "seed.json")


def _make(
    lab: Lab, database: legacy.Database, messages: int, say: Callable[[str], None], folder: Path
) -> None:
    machine = lab.machine(MACHINE)
    if machine.created:
        raise RuntimeError(
            f"the machine {MACHINE} exists already and would be overwritten: "
            "`make clean-lab` first, or keep the cache that made it"
        )
    try:
        machine.create()
        machine.boot()
        legacy.build(machine, database, lab.issue, say)
        lab.dns_point("chat.lale.test", machine.address)
        lab.dns_point("www.lale.test", machine.address)
        say("legacy: seeding")
        seed(lab, machine.init(), folder / "seed.json", messages, say)
        legacy.settle(machine, database)
        machine.stop()
        say("legacy: keeping the seeded machine")
        left_out = [f"--exclude={path}" for path in NOT_KEPT]
        # -X with root keeps overlayfs's own attributes, -D its whiteouts.
        command = ["rsync", "-aHAX", *left_out, f"{machine.upper}/", f"{folder / 'layer'}/"]
        subprocess.run(command, check=True, timeout=300)
    finally:
        machine.destroy()


def seed(lab: Lab, pid: int, out: Path, messages: int, say: Callable[[str], None]) -> None:
    """Runs the seed as a client of the lab's network. Raises RuntimeError with its last words."""
    command = [*lab.network.client(), sys.executable, "-m", "tests.lab.seed"]
    command += ["--url", people.PUBLIC_URL, "--ca", str(lab.settings.ca)]
    command += ["--admin-url", legacy.ADMIN_URL, "--admin-pid", str(pid)]
    command += ["--out", str(out), "--messages", str(messages)]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=SEED_SECONDS, check=False
    )
    if process.returncode != 0 or not out.exists():
        raise RuntimeError(f"seeding {people.PUBLIC_URL} failed:\n{process.stderr[-2000:]}")
    for line in process.stdout.splitlines():
        say(f"seed: {line}")
