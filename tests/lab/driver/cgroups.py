"""Control groups of the lab: each machine gets its own, or two systemds would share one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def hierarchies(mountinfo: str) -> list[Path]:
    """Mount points of the hierarchies to use, from /proc/self/mountinfo.

    On v2 that is one; on v1 and hybrid, every one but cpuset, whose new groups have no CPU.
    """
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        where = Path(left.split()[4])
        kind, _, options = right.partition(" ")
        if kind in ("cgroup", "cgroup2") and "cpuset" not in options.split()[-1].split(","):
            found.append(where)
    return found


def host_hierarchies() -> list[Path]:
    """The hierarchies of this host."""
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def make(name: str) -> list[Path]:
    """Make the group ``name`` (a relative path) in every hierarchy that allows it."""
    made = []
    for top in host_hierarchies():
        group = top / name
        try:
            group.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        made.append(group)
    return made


def processes(name: str) -> set[int]:
    """Processes in the group or below it, in any hierarchy."""
    found: set[int] = set()
    for top in host_hierarchies():
        # os.walk passes over a group that vanishes meanwhile, which Path.rglob does not.
        for folder, _, _ in os.walk(top / name):
            with contextlib.suppress(OSError):
                text = Path(folder, "cgroup.procs").read_text()
                found |= {int(word) for word in text.split()}
    return found - {0}


def kill(name: str) -> int:
    """SIGKILL everything in the group until nothing is left; returns how many there were."""
    count = 0
    end = time.monotonic() + 10
    while (alive := processes(name)) and time.monotonic() < end:
        count = max(count, len(alive))
        for pid in alive - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return count


def remove(name: str) -> None:
    """Remove the group and all below it; groups in use stay."""
    for top in host_hierarchies():
        group = top / name
        if group.is_dir():
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)


def exists(name: str) -> bool:
    """True if any hierarchy has the group."""
    return any((top / name).is_dir() for top in host_hierarchies())


def unified(name: str) -> Path | None:
    """The group in the v2 hierarchy, None if it has none; only there is CPU counted by unit."""
    found = [top / name for top in host_hierarchies() if (top / "cgroup.controllers").exists()]
    return next((group for group in found if group.is_dir()), None)


def unit_cpu(group: Path) -> dict[str, float]:
    """CPU seconds so far of each service below a v2 group, by the name of its unit."""
    found = {}
    for folder, _, _ in os.walk(group):
        if folder.endswith(".service"):
            # A unit that ends meanwhile is no error.
            with contextlib.suppress(OSError):
                text = Path(folder, "cpu.stat").read_text()
                rows = dict(line.split() for line in text.splitlines())
                found[Path(folder).name] = int(rows["usage_usec"]) / 1e6
    return found


@contextlib.contextmanager
def frozen(group: Path) -> Iterator[None]:
    """Nothing below a v2 group runs within the block.

    Not for longer than two minutes: systemd ends services that do not show themselves for three.
    """
    switch = group / "cgroup.freeze"
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")
