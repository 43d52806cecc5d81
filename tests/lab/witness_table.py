"""The witness's report as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def verdict(report: dict[str, Any], worst_wait: float | None = None) -> list[str]:
    """What in a report is not as it must be, a line each; empty if nothing.

    worst_wait: seconds allowed, if there is a bound.
    """
    bad = [
        f"{name.replace('_', ' ')}: {report[name]}, must be 0"
        for name in ("lost", "duplicated", "failed_requests", "stale_connections", "rate_limited")
        if report[name]
    ]
    bad += [
        f"to-device {name}: {report['to_device'][name]}, must be 0"
        for name in ("lost", "duplicated")
        if report["to_device"][name]
    ]
    media = report["media"]
    if media["intact"] != media["uploaded"]:
        bad.append(f"media intact: {media['intact']} of {media['uploaded']}")
    if not report["acknowledged"]:
        bad.append("no message was acknowledged: the witness saw nothing")
    if worst_wait is not None and report["worst_wait_seconds"] > worst_wait:
        bad.append(f"worst wait: {report['worst_wait_seconds']} s, at most {worst_wait} s allowed")
    return bad + [f"report incomplete: {text}" for text in report["problems"]]


def print_report(
    report: dict[str, Any], title: str = "Witness", console: Console | None = None
) -> None:
    """Prints a report, with the failures and the worst waits below it."""
    console = console or Console()
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("seen", justify="right")
    device, media, polls = report["to_device"], report["media"], report["long_polls"]
    wrong = {
        *("lost", "duplicated", "failed requests", "stale connections", "rate limited"),
        *("to-device lost", "to-device duplicated"),
    }
    for name, value in {
        "acknowledged": report["acknowledged"],
        "delivered": report["delivered"],
        "lost": report["lost"],
        "duplicated": report["duplicated"],
        "failed requests": report["failed_requests"],
        "worst wait": f"{report['worst_wait_seconds']:.2f} s",
        "requests": report["requests"]["total"],
        "long polls (cut)": f"{polls['total']} ({polls['cut']})",
        "to-device acknowledged": device["acknowledged"],
        "to-device lost": device["lost"],
        "to-device duplicated": device["duplicated"],
        "media intact": f"{media['intact']} of {media['uploaded']}",
        "stale connections": report["stale_connections"],
        "rate limited": report["rate_limited"],
        "from": report["started"],
        "to": report["finished"],
    }.items():
        style = ("red" if value else "green") if name in wrong else None
        table.add_row(name, str(value), style=style)
    console.print(table)
    if report["failures"]:
        console.print(_failures(report["failures"][:10]))
    console.print(_waits(report["worst_waits"]))
    for problem in report["problems"]:
        console.print(f"incomplete: {problem}", style="red", markup=False)


def _failures(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Failed requests (the first ones)", title_justify="left")
    for name in ("at", "method", "path", "cause", "retried"):
        table.add_column(name)
    for row in rows:
        again = "yes" if row["retried"] else "no"
        table.add_row(row["at"], row["method"], row["path"], row["cause"], again)
    return table


def _waits(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Worst waits", title_justify="left")
    for name in ("at", "seconds", "method", "path"):
        table.add_column(name)
    for row in rows:
        table.add_row(row["at"], f"{row['seconds']:.2f}", row["method"], row["path"])
    return table
