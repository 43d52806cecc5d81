"""Steps with times: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from . import cache
from .errors import AnewError, LabError
from .lab import Lab

Say = Callable[[str], None]
StepFunction = Callable[[Lab, Say], str | None]


@dataclass(frozen=True)
class Step:
    """One step of a scenario.

    It is run each time and finds out itself what is done already, so a half-built lab goes on.

    Attributes:
        name: as shown.
        function: does it; gets the lab and ``say(text)`` for what it is at; may return a short
            text on how it went.
        bound_seconds: it is stopped and fails after so long.
    """

    name: str
    function: StepFunction
    bound_seconds: float


@dataclass(frozen=True)
class Total:
    """What a whole run may take, and where it is written down.

    Attributes:
        name: of the file in the lab's reports, without suffix.
        cold_seconds: bound when something had to be built.
        warm_seconds: bound when everything came from the cache.
        before_seconds: what has passed before the first step.
    """

    name: str
    cold_seconds: float
    warm_seconds: float
    before_seconds: float = 0.0

    def words(self, seconds: float, cold: bool) -> str:
        """How long it took and whether that is too long."""
        bound = self.cold_seconds if cold else self.warm_seconds
        kind = "with things to build" if cold else "with everything in the cache"
        if seconds <= bound:
            return f"in all {seconds:.0f} s, of {bound:g} s that a run {kind} may take"
        return (
            f"TOO SLOW: in all {seconds:.0f} s, a run {kind} may take {bound:g} s "
            f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
        )


@dataclass
class _Row:
    step: Step
    state: str = "waiting"
    note: str = ""
    started: float = 0.0
    seconds: float = 0.0


@dataclass
class StepError(LabError):
    """A step failed: its name, the cause, and where the logs are."""

    step: str
    cause: BaseException
    logs: str
    seconds: float = 0.0

    def __str__(self) -> str:
        text = (
            f"step `{self.step}` failed after {self.seconds:.1f} s\n{self.cause}\nlogs: {self.logs}"
        )
        if isinstance(self.cause, AnewError):
            return text
        return f"{text}\nRun the same command again to go on from here."


@dataclass
class Progress:
    """Runs steps and shows them."""

    lab: Lab
    console: Console = field(default_factory=Console)
    rows: list[_Row] = field(default_factory=list)

    def run(self, steps: Sequence[Step], total: Total | None = None) -> None:
        """Run steps in order.

        Args:
            steps: what to do.
            total: of the whole run; it is told and written down, and never fails the run.

        Raises:
            StepError: for the first that fails or takes longer than its bound.
        """
        self.rows = [_Row(step) for step in steps]
        begin, there = time.monotonic(), len(cache.BUILT)
        try:
            if self.console.is_terminal:
                with Live(get_renderable=self._table, console=self.console, refresh_per_second=8):
                    self._all()
            else:
                self._all()
            self.console.print(f"all steps done in {time.monotonic() - begin:.1f} s")
        finally:
            if total is not None:
                seconds = time.monotonic() - begin + total.before_seconds
                self._sum(total, seconds, cache.BUILT[there:])

    def _sum(self, total: Total, seconds: float, built: list[str]) -> None:
        done = all(row.state == "done" for row in self.rows)
        if done:
            self.console.print(total.words(seconds, bool(built)), highlight=False, soft_wrap=True)
        report = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "done": done,
            "seconds": round(seconds, 1),
            "bound_seconds": total.cold_seconds if built else total.warm_seconds,
            "before_seconds": round(total.before_seconds, 1),
            "built": built,
            "steps": [
                {"name": row.step.name, "state": row.state, "seconds": round(row.seconds, 1)}
                for row in self.rows
            ],
        }
        folder = self.lab.settings.reports
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{total.name}.json").write_text(json.dumps(report, indent=1) + "\n")

    def _all(self) -> None:
        for number, row in enumerate(self.rows, 1):
            self._one(number, row)

    def _one(self, number: int, row: _Row) -> None:
        row.state, row.started = "running", time.monotonic()
        count = f"[{number}/{len(self.rows)}]"
        self._line(f"{count} {row.step.name} (at most {row.step.bound_seconds:g} s)")

        def say(text: str) -> None:
            row.note = text
            self._line(f"{count}   {text}  ({time.monotonic() - row.started:.1f} s)")

        try:
            with _Bound(row.step):
                note = row.step.function(self.lab, say)
        except BaseException as error:
            row.state, row.seconds = "failed", time.monotonic() - row.started
            if isinstance(error, KeyboardInterrupt):
                raise
            raise StepError(
                row.step.name, error, str(self.lab.settings.logs), row.seconds
            ) from error
        row.state, row.seconds = "done", time.monotonic() - row.started
        row.note = note or ""
        self._line(f"{count} {row.step.name}: done in {row.seconds:.1f} s  {row.note}".rstrip())

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for row in self.rows:
            seconds = row.seconds
            mark: Text | Spinner = Text("·", style="dim")
            if row.state == "running":
                seconds = time.monotonic() - row.started
                mark = Spinner("dots")
            elif row.state == "done":
                mark = Text("✓", style="green")
            elif row.state == "failed":
                mark = Text("✗", style="red")
            style = "dim" if row.state == "waiting" else ""
            took = "" if row.state == "waiting" else f"{seconds:6.1f} s"
            table.add_row(
                mark,
                Text(row.step.name, style=style),
                Text(took),
                Text(f"of {row.step.bound_seconds:g}", style="dim"),
                Text(row.note[:70], style="dim"),
            )
        return table


class _Bound:
    """Ends the block by an error when its time is over."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.old = signal.signal(signal.SIGALRM, self._over)
        signal.setitimer(signal.ITIMER_REAL, self.step.bound_seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.old)

    def _over(self, _number: int, _frame: FrameType | None) -> None:
        raise LabError(f"not done within its {self.step.bound_seconds:g} s")
