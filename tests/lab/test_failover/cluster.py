"""What the tests of a cluster in trouble look at, and wait for."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from tests.lab.driver import SaltRunError, cgroups, wait_for
from tests.lab.stage import Stage

#: A machine boots, follows, and is synchronous again.
WHOLE_SECONDS = 180
#: Bytes behind the primary at which a standby is with it.
NEAR = 1 << 20


def status(stage: Stage) -> dict[str, Any]:
    """What the operator sees; nothing while no machine of the cluster can say it."""
    try:
        return stage.lab.salt_run("database.status", timeout=90)
    except SaltRunError:
        return {"leader": "", "members": {}, "sync": [], "durability": "", "problems": []}


def leader(stage: Stage) -> str:
    return str(status(stage)["leader"])


def whole(stage: Stage) -> None:
    """Wait until one leads and two follow, one of them synchronous where that is promised."""

    def looks() -> bool:
        found = status(stage)
        follow = [
            row
            for row in found["members"].values()
            if row["role"] != "leader"
            and row["state"] in ("running", "streaming")
            and (row["lag"] or 0) < NEAR
        ]
        promised = found["durability"] == "async" or found["sync"]
        return bool(found["leader"] and len(follow) == 2 and promised)

    wait_for(looks, WHOLE_SECONDS, "the cluster to be whole", interval=1)


def another_leads(stage: Stage, before: str, seconds: float = 60) -> None:
    """Wait until another than the one of before leads."""
    words = f"another than {before} to lead"
    wait_for(lambda: leader(stage) not in ("", before), seconds, words)


@contextlib.contextmanager
def standing_still(stage: Stage, name: str) -> Iterator[None]:
    """All processes of a machine stand still within the block, then go on."""
    group = cgroups.unified(stage.lab.machine(name).group)
    assert group, "the host has no v2 control groups"
    with cgroups.frozen(group):
        yield


def standby_of(stage: Stage) -> str:
    """One of today's, by chance."""
    rows: dict[str, dict[str, str]] = status(stage)["members"]
    return random.choice([name for name, row in rows.items() if row["role"] != "leader"])


def first_of(stage: Stage, worker: str) -> str:
    """Process id of a worker's first process; whoever restarted has another one."""
    return stage.main_pid(f"synapse-worker@{worker}-1", worker)


def follows(stage: Stage, name: str) -> bool:
    """Whether a machine streams from the primary of today."""
    row = status(stage)["members"].get(name, {})
    return row.get("state") in ("running", "streaming") and row.get("role") != "leader"
