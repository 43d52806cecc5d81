"""The checker as a program, for whoever has to run it in another machine's network namespace."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .checker import Places, Run


def main(arguments: list[str] | None = None) -> int:
    """Check until both bounds are reached; the tally goes into a file. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("places", type=Path, help="JSON: main, writers, readers, accounts")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--checks", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    places = json.loads(given.places.read_text())
    accounts = [(user, password) for user, password in places.pop("accounts")]
    run = Run(Places(**places, accounts=accounts))
    ledger = run.go(given.seconds, given.checks)
    given.out.write_text(json.dumps(ledger.as_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
