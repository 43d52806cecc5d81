"""What `make lab` shows of milestones: each one's report, and all of them at the end."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.lab import milestones, people, witness
from tests.lab.driver import Lab

Json = dict[str, Any]

WIDTH = 112


def summary(report: Json) -> str:
    """A report in one line."""
    return (
        f"{report['acknowledged']} messages, {report['lost']} lost, {report['duplicated']} twice, "
        f"{report['failed_requests']} requests failed, worst wait "
        f"{report['worst_wait_seconds']:.1f} s"
    )


def show_report(name: str, report: Json) -> None:
    """Print what the witness saw of a milestone, unless it was cut short, and what was read."""
    console = _console()
    if "acknowledged" in report:
        witness.print_report(report, f"{name.capitalize()}: what the witness saw", console)
    console.print(f"read back: {_read_back(report['read_back'])}")
    _print(console)


def _read_back(read: Json) -> str:
    if read["unexplained"]:
        return f"{len(read['unexplained'])} differences that nothing explains"
    if known := sum(read["explained"].values()):
        return f"{known} differences, each on the whitelist of the new release"
    return "equal"


def show_closing(lab: Lab, seed: Path) -> None:
    """Print all milestones side by side, and how to try the server."""
    console = _console()
    table = Table(title="Milestones", title_justify="left")
    table.add_column("")
    for word in ("acknowledged", "delivered", "lost", "duplicated", "failed", "worst wait"):
        table.add_column(word, justify="right")
    table.add_column("read back", justify="right")
    for name, milestone in milestones.MILESTONES.items():
        table.add_row(name.capitalize(), *_figures(milestones.report_of(lab, name), milestone))
    console.print(table)
    # Lines to be copied are left whole: a narrow terminal breaks them itself.
    how = _how_to_try(lab, json.loads(seed.read_text()))
    console.print(how, markup=False, highlight=False, soft_wrap=True)
    _print(console)


def _figures(report: Json | None, milestone: milestones.Milestone) -> list[str]:
    if report is None:
        return ["not run yet"]
    names = ("acknowledged", "delivered", "lost", "duplicated", "failed_requests")
    wait = f"{report['worst_wait_seconds']:.1f} s of {milestone.worst_wait:g}"
    return [*(str(report[name]) for name in names), wait, _equal(report["read_back"])]


def _equal(read: Json) -> str:
    if read["unexplained"]:
        return "differs"
    known = sum(read["explained"].values())
    return f"equal but for {known} allowed" if known else "equal"


def _how_to_try(lab: Lab, seed: Json) -> str:
    people_here = [user for user in seed["users"] if not user["deactivated"]]
    name, word = (max(len(user[key]) for user in people_here) for key in ("localpart", "password"))
    users = "".join(
        f"    {user['localpart']:{name}}  {user['password']:{word}}  {user['kind']}\n"
        for user in people_here
    )
    inside = f"ip netns exec {lab.settings.netns} curl --cacert {lab.settings.ca}"
    return (
        f"{people.PUBLIC_URL} in the network namespace {lab.settings.netns}:\n"
        f"  {inside} {people.PUBLIC_URL}/_matrix/client/versions\n"
        f"  users, passwords, and who checks them:\n{users}"
        "  the record: make shell M=salt C='salt-run milestone.status'"
    )


def _console() -> Console:
    # Not onto the terminal itself: the live table of the steps stands there, and what is
    # printed through sys.stdout goes above it.
    live = sys.stdout.isatty()
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 1)).columns) if live else WIDTH
    return Console(file=io.StringIO(), force_terminal=live, width=width, soft_wrap=False)


def _print(console: Console) -> None:
    assert isinstance(console.file, io.StringIO)
    print(console.file.getvalue(), end="", flush=True)
