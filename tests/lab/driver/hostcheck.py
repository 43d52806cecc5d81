"""Can this host carry the lab? Every reason against it in one answer."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from . import cgroups
from .chamber import ALONE, PATH
from .errors import HostError, LabError
from .hostapt import archive
from .process import host
from .settings import Settings

GIB = 1024**3
DISK_COLD = 8 * GIB
DISK_WARM = 4 * GIB
MEMORY = 6 * GIB

TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "rsync": "rsync",
    "apt-ftparchive": "apt-utils",
    "openssl": "openssl",
    "git": "git",
}
"""Commands the lab uses, each with the Debian package that brings it."""

INOTIFY, INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances"), 1024


def problems(settings: Settings, *, cached: bool, running: bool) -> list[str]:
    """Every reason why the lab cannot run here.

    Args:
        settings: of the lab.
        cached: images exist already, so less disk is needed.
        running: machines run already, so their memory is not asked for again.
    """
    found = []
    if os.geteuid() != 0:
        found.append(f"not root (user id {os.geteuid()}): run as root, e.g. `sudo make lab`")
    found += missing_tools()
    found += disk_problems(settings, DISK_WARM if cached else DISK_COLD)
    if not running:
        found += memory_problems(Path("/proc/meminfo").read_text())
    if not found:
        found += kernel_problems(settings)
    try:
        archive()
    except LabError as error:
        found.append(str(error))
    return found


def missing_tools() -> list[str]:
    """Commands that are not there."""
    lost = {
        tool: package
        for tool, package in TOOLS.items()
        if not shutil.which(tool, path=f"{PATH}:{os.environ.get('PATH', '')}")
    }
    return [
        f"no command {tool}: install the package {package} (`make venv` does)"
        for tool, package in lost.items()
    ]


def disk_problems(settings: Settings, wanted: int) -> list[str]:
    """Places with less than ``wanted`` bytes free."""
    found = []
    for place in (settings.cache, settings.root):
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < wanted:
            found.append(
                f"{place}: {free / GIB:.1f} GiB free, {wanted / GIB:.0f} GiB needed. Free some, "
                "or set SALTWORKS_CACHE / SALTWORKS_LAB to another disk"
            )
    return found


def memory_problems(meminfo: str) -> list[str]:
    """Whether /proc/meminfo shows enough available memory."""
    values = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    available = int(values["MemAvailable"].split()[0]) * 1024
    if available >= MEMORY:
        return []
    return [
        f"{available / GIB:.1f} GiB of memory available, {MEMORY / GIB:.0f} GiB needed. "
        "Stop something big"
    ]


def kernel_problems(settings: Settings) -> list[str]:
    """Overlay, network namespaces and control groups, each tried."""
    found = []
    settings.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".try-", dir=settings.root) as name:
        place = Path(name)
        for folder in ("lower", "upper", "work", "root"):
            (place / folder).mkdir()
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        mount: list[str | Path] = ["mount", "-t", "overlay", "try", "-o", options, place / "root"]
        tried = host([*ALONE, *mount], check=False)
        if not tried.ok:
            found.append(
                f"{settings.root}: no overlay can be mounted ({tried.stderr.strip()}). Put the "
                "checkout, or SALTWORKS_LAB, on ext4, xfs or btrfs, not on another overlay"
            )
    tried = host(["unshare", "--net", "ip", "link", "add", "sw0", "type", "bridge"], check=False)
    if not tried.ok:
        found.append(
            f"no network namespace with a bridge ({tried.stderr.strip()}). Run on a machine or "
            "VM of its own, not in an unprivileged container"
        )
    trial = f"{settings.cgroup}-try"
    if not cgroups.make(trial):
        found.append("no control group can be made below /sys/fs/cgroup. Mount it writable")
    cgroups.remove(trial)
    return found


def raise_inotify(file: Path = INOTIFY) -> None:
    """systemd of each machine watches files by some ten instances, all of them root's of the host.

    The kernel's own bound of 128 is what a dozen machines take. It is raised, never lowered, and
    stays so until the host's next boot (inotify(7)).
    """
    if int(file.read_text()) < INSTANCES:
        file.write_text(f"{INSTANCES}\n")


def check(settings: Settings, *, cached: bool, running: bool) -> None:
    """Raise ``HostError`` with every problem, if there is any."""
    found = problems(settings, cached=cached, running=running)
    if found:
        raise HostError(found)
