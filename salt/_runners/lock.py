"""Who works on the cluster just now: ``salt-run lock.show``."""

from __future__ import annotations

import time
from typing import Any

from saltworks import bank, lock
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.tree import Tree

__opts__: dict[str, Any]

__func_alias__ = {"break_": "break"}


@refusing
def show() -> dict[str, Any]:
    """Who holds the cluster's lock, why, since when and until when at most.

    CLI Example:

    .. code-block:: bash

        salt-run lock.show
    """
    return lock.table(bank.read(Tree.of(__opts__).store, lock.RECORD), time.time())


@refusing
def break_() -> str:
    """Free the lock of a process that lives but does nothing any more.

    The lock of a process that has ended is free already. End the process first: it learns
    that it has lost the lock only at its next step.

    :raises saltworks.errors.Refused: nobody holds it.

    CLI Example:

    .. code-block:: bash

        salt-run lock.break
    """
    house = Tree.of(__opts__)
    with house.changing(lock.RECORD) as row:
        hold = lock.holder(row, time.time())
        if hold is None:
            raise Refused("lock", [Problem("lock", "nobody holds it", "nothing is to be broken")])
        row.clear()
    return f"the lock of process {hold.owner.pid} ({hold.reason}) is broken"
