"""From SQLite: one pass of ``synapse_port_db`` in the window, into a target made for it.

From there is no way back (``salt/_modules/synapse_port.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import clustermap
from ...clustermap import Map
from ...errors import Problem
from ...meeting import Check
from ...plan import CONFIG_DIR, RELEASES_DIR, SQLITE_PATH, USER, Placement
from ..model import Ask, Steps


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    at = clustermap.the_machine(cmap, "synapse") or ""
    if placement.database:
        # Nothing leads back (no_return), and the file cannot be opened by Synapse.
        return Steps()
    words = {
        "config": f"{CONFIG_DIR}/upcoming.yaml",
        "release": f"{RELEASES_DIR}/{cmap['releases']['synapse']}",
        "sqlite": SQLITE_PATH,
        "user": USER,
    }
    return Steps(
        before=(Ask(at, "synapse_port.prepare", words),),
        act=(Ask(at, "synapse_port.port", words),),
        undo=(Ask(at, "synapse_port.reopen", {"sqlite": SQLITE_PATH, "user": USER}),),
    )


def problems(machine: str, found: Mapping[str, Any]) -> list[Problem]:
    """What speaks against the pass.

    :param machine: Synapse's.
    :param found: ``synapse_db.facts`` of it.
    """
    pending = (found["schema"] or {}).get("pending", [])
    if not pending:
        return []
    what = f"background updates still run: {', '.join(pending[:5])}"
    return [Problem(f"{machine}: Synapse's database", what, "wait for their end, then again")]


def check(row: Mapping[str, Any]) -> Check:
    """The verdict on what ``synapse_port.recorded`` tells."""
    if "error" in row or not row:
        return Check("content", False, str(row.get("error", "there is no record of a pass")))
    words = f"{row['tables']} tables with {row['rows']} rows are equal, by checksum"
    left_out = f"; {row['dropped']} with a NUL were left out" if row["dropped"] else ""
    return Check("content", not row["different"], words + left_out)
