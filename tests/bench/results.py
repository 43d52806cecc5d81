"""Where measurements go: onto the screen, and into docs/results with date and machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab.driver import PROJECT

FOLDER = PROJECT / "docs" / "results"


def show(name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Print a table and keep it.

    :param name: of the file in docs/results, without suffix.
    :param title: its headline.
    :param head: names of the columns.
    :param rows: the cells, as text.
    :returns: the file.
    """
    table = Table(*head, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    lines = [f"# {title}", "", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}", ""]
    lines += [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows), ""]
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def machine() -> str:
    """Cores, memory and load of this machine, in words."""
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return f"{os.cpu_count()} cores, {gib:.0f} GiB, load {os.getloadavg()[0]:.1f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
