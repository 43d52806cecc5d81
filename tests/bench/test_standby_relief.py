"""What standby reads take off the primary, and what they cost, in interleaved pairs."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path

import pytest

from tests import synapse_packages
from tests.bench import results
from tests.bench.standby_load import Cost, Load
from tests.process.front_door import wait_for
from tests.process.standby_homeserver import MODULE, WORKERS, Homeserver, homeserver
from tests.process.standby_servers import servers
from tests.render.conftest import synapse_release

__all__ = ["synapse_release"]

pytestmark = pytest.mark.bench

PAIRS, SECONDS = 5, 20
#: What issue 5 wants: transactions and database time on the standby, and the primary's CPU.
WANTED = ("at least 0.75", "at least 0.80", "at most 0.35")

Pair = tuple[Cost, Cost]


def share(of: dict[str, float]) -> float:
    """Of all interactions of the readers, or their seconds, the standby's."""
    return of["standby"] / sum(value for name, value in of.items() if name != "fetches")


def tell(path: Path, entries: Sequence[dict[str, object]], server: Homeserver) -> None:
    """The list of standbys from now on; no process restarts."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(list(entries)))
    os.replace(new, path)

    def heard() -> bool:
        found = [sum(value for (sample, _), value in server.metrics(name).items()
                     if sample == "synapse_standby_reads_ready") for name in WORKERS]
        return found == [len(entries)] * len(WORKERS)

    wait_for(f"{len(entries)} standbys", heard, 30)


def figures(pairs: Sequence[Pair]) -> list[list[str]]:
    """Medians of the ratios of pairs, standby reads to all on the primary, with their ranges."""
    def ratio(name: str, take: Callable[[Cost], float]) -> list[str]:
        found = [take(reads) / take(alone) for alone, reads in pairs]
        return [name, f"{statistics.median(found):.2f}", f"{min(found):.2f} to {max(found):.2f}"]

    rows = [
        ratio(f"primary's CPU ({WANTED[2]})", lambda cost: cost.cpu["primary"]),
        ratio("PostgreSQL's CPU, both", lambda cost: cost.cpu["primary"] + cost.cpu["standby"]),
        ratio("Synapse's CPU, the readers", lambda cost: cost.cpu["readers"]),
        ratio("Synapse's CPU, all", lambda cost: cost.cpu["synapse"]),
    ]
    for kind in ("initial sync", "messages", "members", "keys", "send"):
        rows.append(ratio(f"median of {kind}", methodcaller("median", kind)))
    return rows


def test_the_primary_is_relieved(
    synapse_release: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    synapse_packages.add_psycopg2()
    path = tmp_path / "standbys.json"
    pairs: list[Pair] = []
    with servers(1) as on, homeserver(
        synapse_release, on, tmp_path_factory.mktemp("homeserver")
    ) as server:
        for name in WORKERS:
            server.start(name, MODULE, standbys_file=str(path), single_statements=True)
        server.answers(*WORKERS)
        load = Load(server)
        load.prepare()
        standby = [on.entry(1)]
        for entries in (standby, []):
            tell(path, entries, server)
            load.phase(5, 0)
        for number in range(PAIRS):
            found = {}
            order = (False, True) if number % 2 else (True, False)
            for reads in order:
                tell(path, standby if reads else [], server)
                found[reads] = load.phase(SECONDS, number)
            pairs.append((found[False], found[True]))
    on_standby = [(share(reads.served), share(reads.spent)) for _, reads in pairs]
    transactions, spent = (statistics.median(row[n] for row in on_standby) for n in (0, 1))
    fetches = statistics.median(
        reads.spent["fetches"] / reads.served["standby"] for _, reads in pairs)
    rows = [
        ["transactions of the readers on the standby", f"{transactions:.2f}", WANTED[0]],
        ["database time of the readers on the standby", f"{spent:.2f}", WANTED[1]],
        ["questions to the primary per read", f"{fetches:.2f}", ""],
        *figures(pairs),
    ]
    head = ["", "standby reads to all on the primary, median of pairs", "range"]
    title = f"Standby reads under a load of /sync, {PAIRS} interleaved pairs of {SECONDS} s"
    results.show("standby-relief", title, head, rows)
