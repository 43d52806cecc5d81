"""M4, part workers: Redis, through which Synapse's processes hear of each other.

Synapse is one process before and after. But from then on it says what it does to Redis, answers
its workers, and has the plugin that nginx asks whose a token is: a worker's coming needs no more of
it. What the main process is told then stands in :mod:`saltworks.workers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..clustermap import Map, address, the_machine
from ..errors import Problem
from ..meeting import Check
from ..plan import (
    AUTHORITY,
    AUTHORITY_FILE,
    DATABASE_SERVICE,
    MAIN_REPLICATION_PORT,
    REDIS_PORT,
    REDIS_USER,
    SERVICE,
    Placement,
    Secrets,
    endpoint,
    worker_sources,
)
from .model import Ask, Steps, errors

NAME = "redis"
ROLE = "redis"
MILESTONE = "m4.workers"
#: Workers cannot have SQLite, nor media and directory of the legacy machine.
AFTER = ("m3",)
#: It keeps nothing, so there is nothing to copy.
COPIES_ON = ""
COPIES_BACK_ON = ""
#: Firewalls and accounts of what workers ask let them in from then on; the proxy holds the door,
#: and routes from the first worker on.
CONCERNS = ("proxy", "synapse", "database", "storage", "directory")
SECRETS: Mapping[str, int] = {"redis_password": 40, "worker_replication_secret": 40}
KEY_PAIRS: tuple[str, ...] = ()

REDIS_UNIT = "redis-server.service"

#: Of Synapse's package: without it a release refuses a configuration with Redis.
EXTRA = "redis"


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    return ""


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`.

    All processes look the database up by its service's name, so that its machines come and go
    without a restart of theirs. What each is told of the others is
    :func:`saltworks.workers.main_config` and :func:`saltworks.workers.shared_config`.
    """
    args = config["database"]["args"]
    if placement.database:
        moved = {key: value for key, value in args.items() if key not in ("host", "port")}
        config["database"]["args"] = {**moved, "service": DATABASE_SERVICE}


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if minion not in (placement.redis, placement.upcoming.get(NAME)):
        return {"states": ["base", "redis.absent", "firewall.absent"]}
    main = the_machine(cmap, "synapse")
    sources = [address(cmap, main)] if main else []
    return {
        # The firewall first: from its first moment Redis listens to nobody else.
        "states": ["base", "firewall", "redis"],
        "firewall": {"ports": {REDIS_PORT: [*sources, *worker_sources(cmap, placement)]}},
        "redis": {
            "address": address(cmap, minion),
            "name": minion,
            "port": REDIS_PORT,
            "user": REDIS_USER,
            "password": secret("redis_password"),
            "channel": cmap["server_name"],
            "certificate": {
                "crt": secret(f"pki_{minion}"),
                "key": secret(f"pki_{minion}_key"),
                "authority": secret("pki_authority"),
            },
        },
    }


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    there = placement.redis or placement.upcoming.get(NAME, "")
    if not there:
        return {}
    return {"certificates": {AUTHORITY: secret("pki_authority")}}


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps()


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`.

    There: Synapse would start without Redis as well, and send nothing on; so it is seen before that
    its machine gets there. Back: nothing is there that only Redis has.
    """
    there = the_machine(cmap, ROLE)
    if placement.redis or there is None:
        return Steps()
    return Steps(before=(_reached(cmap, placement, there),))


def no_return(cmap: Map, placement: Placement) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    return [
        Problem(
            row.minion,
            f"is a worker's machine, and {row.state}: it serves from the same database",
            f"salt-run worker.drain {row.minion}, and wait until worker.list says that it is gone",
        )
        for row in placement.members
        if row.state != "gone"
    ]


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    there, here = the_machine(cmap, ROLE), placement.synapse
    if there is None or here == cmap["legacy"]["minion"]:
        # That M2 and M3 come first is said already.
        return {}
    return {
        "redis": Ask(there, "machine_facts.read", {"ports": [REDIS_PORT]}),
        "main": Ask(here, "machine_facts.read", {"ports": [MAIN_REPLICATION_PORT]}),
        "release": Ask(
            here,
            "synapse_release.lacking",
            {"version": cmap["releases"]["synapse"], "extra": EXTRA},
        ),
    }


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    holders = {
        "redis": (REDIS_PORT, REDIS_UNIT),
        "main": (MAIN_REPLICATION_PORT, f"{SERVICE}.service"),
    }
    found = []
    for key, ask in questions(cmap, placement).items():
        answer = told.get(key, {})
        if "error" in answer:
            step = f"salt {ask.machine} test.ping"
            found.append(Problem(f"{ask.machine}: {key}", str(answer["error"]), step))
            continue
        if key == "release":
            found += _release(ask.machine, str(the_machine(cmap, "master")), answer)
            continue
        port, unit = holders[key]
        found += [
            Problem(
                f"{ask.machine}: port {port}",
                f"{row['program'] or 'somebody'} ({row['unit'] or 'no unit'}) listens there",
                "stop that service, or give it another port",
            )
            for row in answer.get("listeners", ())
            if row["port"] == port and row["unit"] != unit
        ]
    return found


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.redis:
        return {}
    main = endpoint(address(cmap, placement.synapse), MAIN_REPLICATION_PORT)
    return {
        "reached": _reached(cmap, placement, placement.redis),
        "heard": Ask(placement.redis, "synapse_worker.connections", {"ports": [REDIS_PORT]}),
        "main": Ask(placement.synapse, "synapse_worker.positions", {"url": f"http://{main}"}),
    }


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    if not told:
        return []
    if wrong := errors(told):
        return [Check("redis", False, "; ".join(wrong))]
    heard = int(told["heard"])
    seen = (
        f"{placement.redis} answers, its certificate verifies on Synapse's machine; "
        f"Synapse has {heard} connections to it and answers its workers"
    )
    return [Check("redis", heard > 0, seen)]


def _release(machine: str, builder: str, answer: Mapping[str, Any]) -> list[Problem]:
    packages = answer.get("packages", ())
    if not packages:
        return []
    return [
        Problem(
            f"{machine}: release",
            f"{', '.join(packages)}, of Synapse's extra {EXTRA}, is not in it: it was built from "
            "an older lock",
            f"salt {builder} state.apply synapse.built, then "
            f"salt {machine} state.apply synapse.prepared",
        )
    ]


def _reached(cmap: Map, placement: Placement, there: str) -> Ask:
    # Without its password, which would stand in the master's job cache.
    at = {"address": address(cmap, there), "port": REDIS_PORT, "authority": AUTHORITY_FILE}
    return Ask(placement.synapse, "redis_bus.reached", {"name": there, **at})
