"""What `make lab` does, step by step. Each step finds out itself what is done already."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from . import legacy, m0, milestone_table, milestones, people, workers
from .driver import AnewError, LabError, hostcheck, oldpostgres, rclone
from .driver.lab import Lab
from .driver.process import host, wait_for
from .driver.progress import Say, Step
from .driver.settings import ADDRESSES


def check_host(lab: Lab, say: Say) -> str:
    """Refuse a host that cannot carry the lab."""
    hostcheck.check(lab.settings, cached=lab.mirror.ready(), running=lab.any_running)
    return "fit for the lab"


def build_debian(lab: Lab, say: Say) -> str:
    """Plain Debian, and a layer with compilers for the builds."""
    if lab.mirror.ready():
        return "cached"
    lab.images.os()
    say("compilers, for the builds")
    lab.images.builder()
    return "made"


def build_packages(lab: Lab, say: Say) -> str:
    """The machines' image, and what they install from."""
    if lab.mirror.ready():
        return "cached"
    jobs = {
        "image with Salt": lab.images.base,
        "Synapse 1.40.0 from source": lab.mirror.legacy,
        "Debian packages": lab.mirror.debs,
        "packages of the new Synapse": lab.mirror.wheels,
    }
    # Two at once: one waits for the network mostly while the other compiles.
    with ThreadPoolExecutor(2) as pool:
        waiting = {pool.submit(make): name for name, make in jobs.items()}
        say(f"making: {', '.join(jobs)}")
        for done in as_completed(waiting):
            say(f"made: {waiting[done]} ({done.result().name})")
    return "made"


def fetch_old_postgresql(lab: Lab, say: Say) -> str:
    """Versions older than Debian's: what the tests of that way to M3 begin with."""
    for major in oldpostgres.majors():
        say(f"PostgreSQL {major}")
        oldpostgres.programs(lab.settings.cache, major)
    return ", ".join(map(str, oldpostgres.majors()))


def fetch_rclone(lab: Lab, say: Say) -> str:
    """The media store's program: tests that run in the lab's network cannot fetch it."""
    return rclone.program(lab.settings.cache).parents[1].name


def build_network(lab: Lab, say: Say) -> str:
    """Namespace, bridge, name server, certificate authority."""
    lab.network_up()
    return f"namespace {lab.settings.netns}"


def create_machines(lab: Lab, say: Say) -> str:
    """Overlays, addresses, keys."""
    for name in ADDRESSES:
        lab.machine(name).create()
    return ", ".join(ADDRESSES)


def seed_file(lab: Lab) -> Path:
    """What the lab's old server was seeded with: it stays, whatever becomes of the cache."""
    return lab.settings.root / "seed.json"


def database() -> legacy.Database:
    """What the old server keeps its data in: the setting ``LEGACY_DATABASE``.

    Raises LabError for a word that is neither.
    """
    word = os.environ.get("LEGACY_DATABASE", "postgresql")
    if word == "sqlite":
        return "sqlite"
    if word == "postgresql":
        return "postgresql"
    raise LabError(f"LEGACY_DATABASE is {word!r}: postgresql or sqlite")


def old_server(lab: Lab, say: Say) -> str:
    """The seeded monolith of 2021, kept as a layer, and the machine that stands on it."""
    machine = lab.machine(m0.MACHINE)
    if machine.created and not seed_file(lab).exists():
        raise AnewError(
            f"{machine.name} is there, but empty, as `make lab-base` leaves it: "
            "`make clean-lab`, then `make lab`"
        )
    if machine.created:
        return "is there"
    found = m0.m0(lab, database(), say=say)
    machine.create(layers=[found.layer])
    shutil.copyfile(found.seed, seed_file(lab))
    lab.dns_point("chat.lale.test", machine.address)
    lab.dns_point("www.lale.test", machine.address)
    return "seeded"


def chat_serves(lab: Lab, say: Say) -> str:
    """Synapse answers through the public name, whatever stands behind it by now."""
    url = f"{people.PUBLIC_URL}/_matrix/client/versions"
    command = [*lab.network.client(), "curl", "-sf", "--cacert", str(lab.settings.ca), url]
    wait_for(lambda: host(command, check=False).ok, 90, f"{url} to answer")
    return people.PUBLIC_URL


def boot_machines(lab: Lab, say: Say) -> str:
    """Boot all that do not run, and wait for their minions."""
    say("booting")
    lab.boot(list(ADDRESSES), answering=False)
    say("waiting for the minions to answer")
    lab.access.answering(list(ADDRESSES))
    return "minions answer"


def push_tree(lab: Lab, say: Say) -> str:
    """The work tree to the master."""
    return f"{len(lab.push_tree())} files changed"


def adopt(lab: Lab, say: Say) -> str:
    """The hand-made server into a cluster map and secrets."""
    return milestones.adopt(lab, seed_file(lab), say)


def achieve_m1(lab: Lab, say: Say) -> str:
    """Synapse upgraded, behind the front door."""
    return _achieve(lab, "m1", say)


def achieve_m2(lab: Lab, say: Say) -> str:
    """Synapse and nginx on machines of their own."""
    milestones.declare(lab, milestones.rows(lab, ("proxy", "synapse")))
    return _achieve(lab, "m2", say)


def achieve_m3(lab: Lab, say: Say) -> str:
    """Database, media store and auth on machines of their own."""
    milestones.declare(lab, milestones.rows(lab, ("database", "storage", "directory")))
    return _achieve(lab, "m3", say)


def achieve_m4_workers(lab: Lab, say: Say) -> str:
    """Redis on a machine of its own, Synapse ready for workers, and the first of them."""
    milestones.declare(lab, milestones.rows(lab, ("redis",)))
    milestones.expect_workers(lab)
    # It waits until there is Redis, and comes with the milestone.
    if not workers.state(lab, workers.FIRST):
        workers.invited(lab, workers.FIRST)
    return _achieve(lab, "m4.workers", say)


def achieve_m4_database(lab: Lab, say: Say) -> str:
    """The database as a cluster: etcd, Patroni over what runs, and a standby."""
    if milestones.status(lab)["m4.database"]["state"] != "achieved":
        # Patroni would drop the slot by which the old machine's cluster follows.
        lab.salt_run("milestone.arm", "m3.database.finalize")
        milestones.orchestrate(lab, "orch.m3.database.finalize", say)
    milestones.expect_databases(lab)
    return _achieve(lab, "m4.database", say)


def show_workers(lab: Lab, say: Say) -> str:
    """Workers come by their invites, and one leaves, while people chat."""
    return workers.shown(lab, seed_file(lab), say)


def _achieve(lab: Lab, name: str, say: Say) -> str:
    fresh = milestones.report_of(lab, name) is None
    report = milestones.proof(lab, name, seed_file(lab), say)
    if fresh:
        # Before it is judged: it tells more than what is wrong with it.
        milestone_table.show_report(name, report)
    milestones.judge(lab, name, report)
    return milestone_table.summary(report)


COLD_SECONDS, WARM_SECONDS = 25 * 60, 18 * 60
"""What `make lab` may take on 2 cores: from nothing, and with everything in the cache.

M1 and M2 alone: 15 and 8 minutes; M3 is 5 more, M4.workers and workers 5.
"""

PREPARE: list[Step] = [
    Step("check host", check_host, 60),
    Step("Debian", build_debian, 900),
    Step("image and packages", build_packages, 900),
    Step("network", build_network, 30),
]
"""What needs the host's network; `make test` does it before it goes into the lab's."""

PREPARE_TESTS: list[Step] = [
    *PREPARE,
    Step("older PostgreSQL", fetch_old_postgresql, 300),
    Step("rclone", fetch_rclone, 300),
]
"""The same for what only tests meet."""

MACHINES: list[Step] = [
    Step("machines", create_machines, 60),
    Step("work tree to the master", push_tree, 180),
    Step("boot", boot_machines, 180),
]
"""Machines, empty, with answering minions."""

STEPS: list[Step] = [
    *PREPARE,
    Step("old server, seeded", old_server, 900),
    *MACHINES,
    Step("chat server serves", chat_serves, 120),
    Step("adopt", adopt, 240),
    Step("M1: upgrade behind the front door", achieve_m1, 900),
    Step("M2: Synapse and nginx on their own", achieve_m2, 900),
    Step("M3: database, media, auth on their own", achieve_m3, 900),
    Step("M4.workers: Redis, main ready for workers", achieve_m4_workers, 600),
    Step("M4.database: a primary and a standby", achieve_m4_database, 900),
    Step("workers join and leave", show_workers, 900),
]
"""All of `make lab`."""
