"""Command line of the lab: ``python -m tests.lab up|status|shell|clean|test|lint|lock``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from . import milestone_table, scenario
from .driver import cleanup
from .driver.checks import lint, test
from .driver.errors import LabError
from .driver.lab import Lab
from .driver.locks import compile_all
from .driver.progress import Progress, Total


def up(lab: Lab, options: argparse.Namespace) -> int:
    """Build and run what is missing."""
    if options.base:
        Progress(lab).run([*scenario.PREPARE, *scenario.MACHINES])
    else:
        began = float(os.environ.get("SALTWORKS_BEGAN") or time.time())
        bounds = (scenario.COLD_SECONDS, scenario.WARM_SECONDS)
        Progress(lab).run(scenario.STEPS, Total("run", *bounds, time.time() - began))
        milestone_table.show_closing(lab, scenario.seed_file(lab))
    return 0


def down(lab: Lab, _: argparse.Namespace) -> int:
    """Shut the machines down; their files stay."""
    lab.down()
    return 0


def status(lab: Lab, _: argparse.Namespace) -> int:
    """Show what exists and runs."""
    console = Console()
    table = Table("machine", "address", "state", "process", box=None)
    for row in lab.status():
        table.add_row(row["machine"], row["address"], row["state"], row["process"])
    console.print(table)
    there = "up" if lab.network.exists and lab.network.server() else "down"
    console.print(
        f"network {lab.settings.netns}: {there}; state {lab.settings.root}", soft_wrap=True
    )
    cached = "complete" if lab.mirror.ready() else "to be built"
    console.print(f"cache {lab.settings.cache}: {cached}", soft_wrap=True)
    for name, address in sorted(lab.network.names().items()):
        if "." in name:
            console.print(f"{name} is {address}")
    return 0


def shell(lab: Lab, options: argparse.Namespace) -> int:
    """A shell, or one command, in a machine."""
    words = lab.machine(options.machine).enter()
    words = ["TERM=" + os.environ.get("TERM", "dumb") if w == "TERM=dumb" else w for w in words]
    inner = ["/bin/sh", "-c", " ".join(options.command)] if options.command else ["/bin/bash", "-l"]
    return subprocess.run([*words, *inner], check=False).returncode


def clean(lab: Lab, _: argparse.Namespace) -> int:
    """Remove every trace."""
    rest = []
    if other := lab.network.tenant():
        raise LabError(
            f"the network namespace {lab.settings.netns} is the lab's in {other}, and would go: "
            "`make clean-lab` there, or name another one here by SALTWORKS_NETNS"
        )
    for settings in [*lab.settings.beside(), lab.settings]:
        for line in cleanup.clean(settings):
            print(f"removed {line}")
        rest += cleanup.leftovers(settings)
    if rest:
        print(f"still there: {', '.join(rest)}. Run it again.", file=sys.stderr)
        return 1
    print("no trace of the lab is left; the cache stays")
    return 0


def run_tests(lab: Lab, options: argparse.Namespace) -> int:
    """All tests, or those chosen."""
    chosen = [word for word in options.chosen if word != "--"]
    return test(lab, lambda: Progress(lab).run(scenario.PREPARE_TESTS), options.only, chosen)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    sub = top.add_subparsers(required=True, metavar="command")
    command = sub.add_parser("up", help="build and run the lab")
    command.add_argument("--base", action="store_true", help="machines only, no milestones")
    command.set_defaults(run=up)
    sub.add_parser("down", help="shut the machines down").set_defaults(run=down)
    sub.add_parser("status", help="what exists and runs").set_defaults(run=status)
    command = sub.add_parser("shell", help="a shell or a command in a machine")
    command.add_argument("machine")
    command.add_argument("command", nargs="*")
    command.set_defaults(run=shell)
    sub.add_parser("clean", help="remove every trace").set_defaults(run=clean)
    command = sub.add_parser("test", help="run tests")
    command.add_argument("--only", choices=("soak", "bench"))
    command.add_argument("chosen", nargs=argparse.REMAINDER)
    command.set_defaults(run=run_tests)
    sub.add_parser("lint", help="run the linters").set_defaults(run=lambda *_: lint())
    sub.add_parser("lock", help="renew the lock files").set_defaults(run=lambda *_: compile_all())
    return top


def main() -> int:
    """Run the command; 1 and a plain text on a failure of the lab."""
    options = parser().parse_args()
    try:
        code = options.run(Lab.load(), options)
    except LabError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run it again to go on, or `make clean-lab`", file=sys.stderr)
        return 130
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
