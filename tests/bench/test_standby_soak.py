"""The checker for 20,000 checks, under faults and promotions, and naive reads beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import synapse_packages
from tests.bench import results
from tests.checker.checker import Run
from tests.checker.ledger import KINDS, Ledger
from tests.process import standby_faults as faults
from tests.process.standby_homeserver import MODULE, NAIVE, homeserver
from tests.process.standby_servers import servers
from tests.render.conftest import synapse_release

__all__ = ["synapse_release"]

pytestmark = pytest.mark.soak

CHECKS, SECONDS = 20_000, 60


def row(name: str, ledger: Ledger) -> list[str]:
    found = [f"{ledger.bad[kind]}/{ledger.checks[kind]}" for kind in KINDS]
    return [name, *found, str(len(ledger.errors))]


def test_twenty_thousand_checks(
    synapse_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    synapse_packages.add_psycopg2()
    with servers(1) as on, homeserver(
        synapse_release, on, tmp_path_factory.mktemp("homeserver")
    ) as server:
        server.read_by(NAIVE)
        naive = Run(server.places, [faults.paused(on, 1), faults.delayed(on, 1)]).go(SECONDS)
        server.read_by(MODULE)
        every = [fault(on, 1) for fault in
                 (faults.paused, faults.delayed, faults.killed, faults.frozen)]
        faulty = Run(server.places, every).go(SECONDS, CHECKS)
        promoted = Run(server.places, [lambda: faults.switched(on)]).go(SECONDS, CHECKS // 10)
        server.ready()
        served = server.served()
    head = ["", *(f"{kind}: bad/checks" for kind in KINDS), "errors of clients"]
    rows = [
        row("naive, replay paused and delayed", naive),
        row("standby reads, and killed and frozen", faulty),
        row("standby reads, promotions", promoted),
    ]
    title = f"The checker; standbys served {served['standby']:.0f} interactions meanwhile"
    results.show("standby-checks", title, head, rows)
    assert naive.bad.total() > 0
    assert faulty.bad.total() == promoted.bad.total() == 0, (str(faulty), str(promoted))
    assert faulty.errors == [], faulty
