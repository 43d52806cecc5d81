"""M3, part media: the media store on a machine of its own.

Synapse keeps its media folder, as a cache: each file is written there and to the store before its
upload is answered, and a file that is no longer there is fetched from the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import clustermap, workers
from ..clustermap import Map
from ..errors import Problem
from ..meeting import Check
from ..plan import (
    AUTHORITY,
    AUTHORITY_FILE,
    MEDIA_DIR,
    USER,
    Placement,
    Secrets,
    database_sources,
    worker_sources,
)
from ..worker_table import table
from .model import Ask, Steps

NAME = "media"
ROLE = "storage"
MILESTONE = "m3.media"
AFTER = ("m2",)
COPIES_ON = "synapse"
COPIES_BACK_ON = "storage"
CONCERNS = ("legacy", "proxy", "synapse")
#: S3 keys: an id of two letters is refused by rclone, and 20 and 40 are what AWS has.
SECRETS: Mapping[str, int] = {"media_access_key": 20, "media_secret_key": 40}
KEY_PAIRS: tuple[str, ...] = ()

PORT = 9000
SERVICE = "saltworks-storage"
#: Where the store's machine keeps its files, one folder a bucket.
DIRECTORY = "/var/lib/saltworks-storage"
BUCKET = "media"
#: Of the database's backups; keys of the store are for all of its buckets.
DATABASE_BUCKET = "database"
REGION = "us-east-1"
LEDGER_BUCKET, LEDGER_KEY = "saltworks", "hashes.jsonl"

#: What stays on Synapse's machine once the store has it, where the map does not say.
CACHE_BYTES, CACHE_DAYS = 10 << 30, 30
#: Used within that a file stays, in seconds.
CACHE_IDLE = 3600

#: Room for the media: a tenth more than they take, and some.
ROOM_BYTES = 1 << 30
MIB = 1 << 20


def endpoint(machine: str) -> str:
    """The store's URL, by the name that is in its certificate."""
    return f"https://{machine}:{PORT}"


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    return ""


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`."""
    provider = {
        "module": "saltworks_media_provider.Provider",
        "store_local": True,
        "store_remote": True,
        # An upload that is answered is in the store.
        "store_synchronous": True,
        "config": {
            "bucket": BUCKET,
            "region_name": REGION,
            "endpoint_url": endpoint(placement.media),
            "access_key_id": {"secret": "media_access_key"},
            "secret_access_key": {"secret": "media_secret_key"},
            "ca": AUTHORITY_FILE,
        },
    }
    config["media_storage_providers"] = [*config.get("media_storage_providers", []), provider]


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if minion not in (placement.media, placement.upcoming.get(NAME)):
        return {"states": ["base", "storage.absent", "firewall.absent"]}
    databases = database_sources(cmap, placement) if placement.clustered else []
    return {
        # The firewall first: from its first moment the store listens to nobody else.
        "states": ["base", "firewall", "storage"],
        "firewall": {
            "ports": {
                PORT: [
                    clustermap.address(cmap, placement.synapse),
                    *worker_sources(cmap, placement),
                    *databases,
                ]
            }
        },
        "storage": {
            "directory": DIRECTORY,
            "bucket": BUCKET,
            "ledger_bucket": LEDGER_BUCKET,
            "ledger_key": LEDGER_KEY,
            # From the beginning: a running rclone sees a new folder after minutes only.
            "buckets": [DATABASE_BUCKET],
            "name": minion,
            "address": clustermap.address(cmap, minion),
            "port": PORT,
            "certificate": {
                "crt": secret(f"pki_{minion}"),
                "key": secret(f"pki_{minion}_key"),
                "authority": secret("pki_authority"),
            },
            "keys": {"access": secret("media_access_key"), "secret": secret("media_secret_key")},
            "service": {"name": SERVICE},
            "build": dict(cmap["build"]),
        },
    }


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if not (placement.media or placement.upcoming.get(NAME)):
        return {"beside": {"states": ["media.absent"]}}
    # It has what was there before the store was; until workers serve media in its place, who delete
    # files that it still has.
    sends = "media" not in workers.of(placement).duties
    return {
        "certificates": {AUTHORITY: secret("pki_authority")},
        "beside": cache(cmap, placement, secret, sends=sends),
    }


def cache(cmap: Map, placement: Placement, secret: Secrets, *, sends: bool) -> dict[str, Any]:
    """What a machine has beside Synapse that keeps a cache of the store, or is about to.

    :param sends: whether its pruning sends what the store does not have.
    """
    store = placement.media or placement.upcoming.get(NAME, "")
    if not store:
        return {"states": ["media.absent"]}
    wanted = cmap.get("media", {})
    return {
        "states": ["media"],
        "media": {
            "user": USER,
            "directory": MEDIA_DIR,
            "counts": "store" if placement.media else "local",
            "sends": sends,
            "store": {
                "endpoint": endpoint(store),
                "ca": AUTHORITY_FILE,
                "bucket": BUCKET,
                "ledger_bucket": LEDGER_BUCKET,
                "ledger_key": LEDGER_KEY,
                "access_key": secret("media_access_key"),
                "secret_key": secret("media_secret_key"),
            },
            "cache": {
                "keep_bytes": int(wanted.get("cache_bytes", CACHE_BYTES)),
                "keep_seconds": int(wanted.get("cache_days", CACHE_DAYS)) * 86400,
                "idle_seconds": CACHE_IDLE,
            },
            "prune": prunes(placement),
        },
    }


def prunes(placement: Placement) -> bool:
    """Whether caches are pruned by themselves: on the way back every file is needed."""
    return bool(placement.media) and NAME not in placement.upcoming


def caches(placement: Placement) -> list[str]:
    """Machines that keep a cache of the store: Synapse's, and those of workers that serve media."""
    if not placement.media:
        return []
    kinds = table().kinds
    rows = workers.of(placement).processes.values()
    serving = {row.machine for row in rows if "media" in kinds[row.kind].resources}
    return [placement.synapse, *sorted(serving)]


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps()


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`.

    There: all is compared before the door closes, and in the window only what came since. Back:
    nothing can come into the store alone, so what was fetched before is all there is; the window
    looks once more. Nothing is to be undone: the local tree has every file in both directions.
    """
    here = placement.synapse
    if not placement.media:
        store = clustermap.the_machine(cmap, ROLE)
        before = (*([_hash(store)] if store else []), _ask(here, "compare"))
        return Steps(before=before, act=(_ask(here, "settle"),))
    return Steps(before=(_ask(here, "back"),), act=(_ask(here, "back"),))


def no_return(cmap: Map, placement: Placement) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    return []


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    store = clustermap.the_machine(cmap, ROLE)
    here = placement.synapse
    if store is None or here == cmap["legacy"]["minion"]:
        # That M2 comes first is said already.
        return {}
    ready = {"version": cmap["releases"]["synapse"], "user": USER, "media": MEDIA_DIR}
    return {
        "media": Ask(here, "machine_facts.read", {"trees": [MEDIA_DIR]}),
        "ready": Ask(here, "media_store.ready", ready),
        "store": Ask(
            store,
            "machine_facts.read",
            {"paths": [DIRECTORY], "ports": [PORT], "trees": [f"{DIRECTORY}/{BUCKET}"]},
        ),
    }


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    store, here = clustermap.the_machine(cmap, ROLE), placement.synapse
    found = [
        Problem(f"{ask.machine}: {key}", str(told[key]["error"]), f"salt {ask.machine} test.ping")
        for key, ask in questions(cmap, placement).items()
        if "error" in told.get(key, {})
    ]
    sound = {key: answer for key, answer in told.items() if "error" not in answer}
    if "ready" in sound:
        found += _readiness(here, str(clustermap.the_machine(cmap, "master")), sound["ready"])
    if "store" in sound:
        found += [
            Problem(
                f"{store}: port {PORT}",
                f"{row['program'] or 'somebody'} ({row['unit'] or 'no unit'}) listens there",
                "stop that service, or give it another port",
            )
            for row in sound["store"]["listeners"]
            if row["port"] == PORT and row["unit"] != f"{SERVICE}.service"
        ]
        found += _room(str(store), sound["store"], sound.get("media"))
    return found


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.media:
        return {}
    return {"hash": _hash(placement.media), "compare": _ask(placement.synapse, "compare")}


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    if not told:
        return []
    for key in ("hash", "compare"):
        if "error" in told[key]:
            return [Check("media store", False, str(told[key]["error"]))]
    files, read = told["compare"]["files"], told["compare"]["read"]
    seen = (
        f"{told['hash']['files']} objects on {placement.media}; all {files} files here are among "
        "them, by size and SHA-256 of the disk there"
    )
    return [Check("media store", True, seen + (f" ({read} by reading them)" if read else ""))]


def _ask(machine: str, function: str) -> Ask:
    return Ask(machine, f"media_store.{function}", {"user": USER})


def _hash(machine: str) -> Ask:
    target = f"{LEDGER_BUCKET}/{LEDGER_KEY}"
    kwargs = {"directory": f"{DIRECTORY}/{BUCKET}", "endpoint": endpoint(machine), "target": target}
    return Ask(machine, "storage.hash", kwargs)


def _readiness(machine: str, builder: str, ready: Mapping[str, Any]) -> list[Problem]:
    found = []
    if not ready["provider"]:
        found.append(
            Problem(
                f"{machine}: release",
                "synapse-s3-storage-provider is not in it: it was built from an older lock",
                f"salt {builder} state.apply synapse.built, then "
                f"salt {machine} state.apply synapse.prepared",
            )
        )
    if ready["unreadable"]:
        found.append(
            Problem(
                f"{machine}: media",
                f"{USER} cannot read {', '.join(ready['unreadable'])}",
                f"chown -R {USER}: {MEDIA_DIR} there",
            )
        )
    return found


def _room(
    machine: str, store: Mapping[str, Any], media: Mapping[str, Any] | None
) -> list[Problem]:
    tree = media["trees"][MEDIA_DIR] if media else None
    if tree is None or not tree["complete"]:
        # So many files that they cannot be counted in time: docs/m3-media.md says what to look at.
        return []
    # What an earlier run has copied needs no room any more.
    there = store["trees"][f"{DIRECTORY}/{BUCKET}"]["bytes"]
    needed = tree["bytes"] * 11 // 10 + ROOM_BYTES - there
    free = store["free"][DIRECTORY]["bytes"]
    if free >= needed:
        return []
    return [
        Problem(
            f"{machine}: {DIRECTORY}",
            f"{free // MIB} MiB free, {-(-needed // MIB)} MiB needed for the media",
            "make room, or mount a larger file system there",
        )
    ]
