"""The releases of Synapse that this tree has locks for, and what builds of them are called."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import Problem, Refused

#: Below the tree: one file of hash-locked requirements a release, named by its version.
LOCKS = Path("formulas/synapse/files/releases")

#: What the locked releases refuse to run below: PostgreSQL's major version (their start), the
#: SQLite library (their start), Python (their metadata).
POSTGRESQL_MINIMUM = 14
SQLITE_MINIMUM = (3, 37, 2)
PYTHON_MINIMUM = (3, 10)

_VERSION = re.compile(r"^\d+(\.\d+)+$")


def lock(root: Path, version: str) -> Path:
    """The lock file of a release.

    :param root: the tree.
    """
    return root / LOCKS / f"{version}.txt"


def newest(names: Iterable[str]) -> str | None:
    """The newest version among names of lock files, None when there is none.

    :param names: such as ``1.163.2.txt``; what is no released version is passed over.
    """
    versions = [name.removesuffix(".txt") for name in names if name.endswith(".txt")]
    numbers = {
        tuple(int(part) for part in version.split(".")): version
        for version in versions
        if _VERSION.match(version)
    }
    return numbers[max(numbers)] if numbers else None


def target(root: Path, release: str | None = None) -> str:
    """The release to go to: the one asked for, or the newest that has a lock.

    :raises Refused: when there is no lock for it.
    """
    names = sorted(path.name for path in (root / LOCKS).glob("*.txt"))
    # On the command line 1.163 is a number.
    chosen = str(release) if release else newest(names)
    if chosen and f"{chosen}.txt" in names:
        return chosen
    known = ", ".join(name.removesuffix(".txt") for name in names) or "none"
    raise Refused(
        "adopt",
        [
            Problem(
                str(root / LOCKS),
                f"there is no lock of {f'Synapse {chosen}' if chosen else 'any release'}; "
                f"locked are: {known}",
                "lock it there as the file <version>.txt, or choose a release that is there",
            )
        ],
    )


def dotted(version: Iterable[int]) -> str:
    """A version as people write it: ``3.10``."""
    return ".".join(map(str, version))


def archive_pattern(version: str, requirements: bytes) -> str:
    """Glob for the archive that ``synapse_release.build`` makes from a lock, for any Python.

    :param requirements: content of the lock file.
    """
    digest = hashlib.sha256(requirements).hexdigest()[:12]
    return f"synapse-{glob.escape(version)}-*-{digest}.tar.gz"
