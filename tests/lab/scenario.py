"""What `make lab` does, step by step. Each step finds out itself what is done already."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed

from . import legacy, m0, people
from .driver import hostcheck
from .driver.lab import Lab
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


def build_network(lab: Lab, say: Say) -> str:
    """Namespace, bridge, name server, certificate authority."""
    lab.network_up()
    return f"namespace {lab.settings.netns}"


def create_machines(lab: Lab, say: Say) -> str:
    """Overlays, addresses, keys."""
    for name in ADDRESSES:
        lab.machine(name).create()
    return ", ".join(ADDRESSES)


def old_server(lab: Lab, say: Say) -> str:
    """The seeded monolith of 2021, kept as a layer, and the machine that stands on it."""
    machine = lab.machine(m0.MACHINE)
    if machine.created:
        return "is there"
    found = m0.m0(lab, say=say)
    machine.create(layers=[found.layer])
    lab.dns_point("chat.lale.test", machine.address)
    lab.dns_point("www.lale.test", machine.address)
    return "seeded"


def old_server_serves(lab: Lab, say: Say) -> str:
    """Synapse 1.40.0 answers on the machine as it was left."""
    legacy.await_synapse(lab.machine(m0.MACHINE))
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


PREPARE: list[Step] = [
    Step("check host", check_host, 60),
    Step("Debian", build_debian, 900),
    Step("image and packages", build_packages, 900),
    Step("network", build_network, 30),
]
"""What needs the host's network; `make test` does it before it goes into the lab's."""

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
    Step("old server serves", old_server_serves, 120),
]
"""All of `make lab`."""
