"""Removes every trace of a lab, found by its names and places, not by a state file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from . import cgroups
from .network import Network, command_lines
from .process import host, wait_for
from .settings import Settings


def mounts_below(mountinfo: str, root: Path) -> list[Path]:
    """Mount points at or below ``root``, deepest first, from /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        text = re.sub(r"\\(\d{3})", lambda m: chr(int(m.group(1), 8)), line.split()[4])
        path = Path(text)
        if path == root or root in path.parents:
            found.append(path)
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def supervisors(root: Path) -> list[int]:
    """Every systemd-nspawn whose directory is below ``root``."""
    start = f"--directory={root}/".encode()
    return [
        pid
        for pid, words in command_lines()
        if words[0].endswith(b"systemd-nspawn") and any(word.startswith(start) for word in words)
    ]


def inhabitants(network: Network) -> set[int]:
    """Processes in the lab's network namespace, without this one and its parents."""
    if not network.exists:
        return set()
    wanted = network.handle.stat().st_ino
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino == wanted:
                    found.add(int(entry.name))
    return found - _ancestors()


def _ancestors() -> set[int]:
    found = {os.getpid()}
    pid = os.getpid()
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(stat.rsplit(")", 1)[1].split()[1])
        found.add(pid)
    return found


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def clean(settings: Settings) -> list[str]:
    """Remove machines, mounts, links, namespace, name server, control groups and ``.lab``.

    The cache stays. Returns what was found and removed, in words.
    """
    network = Network(settings)
    said = []
    nspawns = set(supervisors(settings.root))
    members = cgroups.processes(settings.cgroup)
    if nspawns or members:
        said.append(f"machines: {len(nspawns)}, with {len(members)} processes")
    # A machine's process 1 outlives its killed nspawn, so the groups are what counts.
    _kill(nspawns)
    cgroups.kill(settings.cgroup)
    residents = inhabitants(network)
    if residents:
        said.append(f"processes in the namespace {settings.netns}: {len(residents)}")
        _kill(residents)
        wait_for(lambda: not inhabitants(network), 30, "the namespace to be empty")
    mounts = mounts_below(Path("/proc/self/mountinfo").read_text(), settings.root)
    for path in mounts:
        if not host(["umount", path], check=False).ok:
            host(["umount", "--lazy", path])
    if mounts:
        said.append(f"mounts: {len(mounts)}")
    if network.exists or network.server():
        said.append(f"network namespace {settings.netns}")
    network.down()
    if cgroups.exists(settings.cgroup):
        said.append("control groups")
        cgroups.remove(settings.cgroup)
    if settings.root.exists():
        said.append(str(settings.root))
        shutil.rmtree(settings.root)
    return said


def leftovers(settings: Settings) -> list[str]:
    """What of the lab is still there; empty after ``clean``."""
    network = Network(settings)
    checks = {
        "nspawn processes": bool(supervisors(settings.root)),
        "processes in its control groups": bool(cgroups.processes(settings.cgroup)),
        "control groups": cgroups.exists(settings.cgroup),
        "mounts": bool(mounts_below(Path("/proc/self/mountinfo").read_text(), settings.root)),
        "network namespace": network.exists,
        "name server": bool(network.server()),
        str(settings.root): settings.root.exists(),
    }
    return [name for name, there in checks.items() if there]
