"""What standby reads need of Synapse's release and of Debian, for the tests' own Python."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

#: Debian's, for the system's Python, of which both venvs are made.
PSYCOPG2 = Path("/usr/lib/python3/dist-packages/psycopg2")


def add_psycopg2() -> None:
    """psycopg2 can be imported from now on, and nothing else of Debian's."""
    for name in ("synapse", "synapse_standby_reads"):
        # Salt's handler would say it all once more after pytest's last line.
        logging.getLogger(name).propagate = False
    if "psycopg2" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "psycopg2", PSYCOPG2 / "__init__.py", submodule_search_locations=[str(PSYCOPG2)]
    )
    assert spec
    assert spec.loader
    sys.modules["psycopg2"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["psycopg2"])


def add_synapse(release: Path) -> None:
    """So can Synapse, of a release's venv; what the tests have themselves comes first."""
    add_psycopg2()
    (folder,) = release.glob("lib/python3*/site-packages")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
