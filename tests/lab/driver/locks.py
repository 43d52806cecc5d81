"""Lock files with hashes, each made by uv from its ``.in``."""

from __future__ import annotations

import sys
from pathlib import Path

from .hostpip import pip_settings
from .mirror import LEGACY_LOCK, LEGACY_NEWER, RELEASES, STORAGE
from .process import host
from .settings import PROJECT

REQUIREMENTS = PROJECT / "requirements"
MACHINE = ["--python-platform", "x86_64-manylinux_2_36"]


def lock_commands() -> list[list[str]]:
    """One uv command per lock file, in an order in which they may build on each other."""
    uv = str(Path(sys.executable).parent / "uv")
    common = [uv, "pip", "compile", "--quiet", "--python-version", "3.11", "--generate-hashes"]
    common += ["--custom-compile-command", "make lock"]
    dev = REQUIREMENTS / "dev.txt"
    jobs = [
        (dev, ["--universal"]),
        (REQUIREMENTS / "salt.txt", ["--universal", "--constraint", str(dev)]),
        (REQUIREMENTS / "build.txt", []),
        (LEGACY_LOCK, [*LEGACY_NEWER, *MACHINE]),
    ]
    machines = [*sorted(RELEASES.glob("*.in")), *sorted(STORAGE.glob("*.in"))]
    jobs += [(path.with_suffix(".txt"), MACHINE) for path in machines]
    return [
        [*common, *more, str(lock.with_suffix(".in")), "--output-file", str(lock)]
        for lock, more in jobs
    ]


def compile_all() -> int:
    """Renew every lock file from the host's package index."""
    env = {"PATH": "/usr/bin:/bin", "HOME": "/root", **pip_settings().uv_env()}
    for command in lock_commands():
        print(f"lock: {Path(command[-1]).relative_to(PROJECT)}", flush=True)
        host(command, timeout=300, cwd=PROJECT, env=env)
    return 0
